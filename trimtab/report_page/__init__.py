"""What `trimtab report` makes of tapes: `gather` streams them, `changes` and `series` keep what is drawn, in bounded
memory; `subjects` says what belongs together, `plot` makes lines of it, `view` a page."""
