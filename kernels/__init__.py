"""pycap's Triton kernels, one file an op, and what compiles, stores and launches them (`_launch.py` is the way in)."""
