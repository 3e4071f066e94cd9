"""Pure maths on arrays: linear algebra, moments, the ridge solve, confidence bounds; NumPy or CuPy alike."""
