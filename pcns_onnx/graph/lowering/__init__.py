"""Nodes and types in fewer bits, and what has to be kept from tools that make them."""
