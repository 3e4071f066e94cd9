"""Methods that look at the weights alone."""
