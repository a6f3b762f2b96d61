"""Pure policy: step(state, event) -> (state, wishes). Only __main__ knows a clock, a file or a socket."""
