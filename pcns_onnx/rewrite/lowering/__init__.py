"""A shrunk model in fewer bits: int8 by static quantisation, and float16."""
