"""Doors to other frameworks; each module is imported by the user who wants it, never by the tool."""
