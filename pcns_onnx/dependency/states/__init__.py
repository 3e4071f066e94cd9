"""States that a caller carries from run to run: which they are, and what their channels go with."""
