"""For tests: pytest fixtures, made-up signals and hosts, tapes of them."""
