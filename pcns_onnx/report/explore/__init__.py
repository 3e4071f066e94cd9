"""The frontier as a page to play with."""
