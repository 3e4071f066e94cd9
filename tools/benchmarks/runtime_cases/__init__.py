"""The parts of `runtimes.py`: what is run, in what, and how it is measured there."""
