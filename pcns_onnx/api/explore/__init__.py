"""The frontier to play with: what is shown, the page's server, and the runs that it starts."""
