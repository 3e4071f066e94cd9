"""Commands in modules of their own, and how all commands speak; `cli` hangs them up."""
