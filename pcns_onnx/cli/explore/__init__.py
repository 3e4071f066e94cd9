"""The command that serves a page."""
