"""The experiments of the papers that the methods come from, run again; a folder each."""
