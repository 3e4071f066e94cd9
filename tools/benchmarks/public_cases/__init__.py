"""The parts of `public.py`: packages that ship models, samples that ship with packages, the cases, and their scores."""
