"""What shrinking is worth and what it costs, measured; a command each."""
