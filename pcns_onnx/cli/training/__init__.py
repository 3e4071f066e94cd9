"""The commands whose results are trained further."""
