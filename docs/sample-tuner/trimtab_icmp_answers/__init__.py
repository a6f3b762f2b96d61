"""A tuner for trimtab in a package of its own: see docs/adding-a-tuner.md."""
