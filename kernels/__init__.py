"""The home of pycap's Triton kernels, one file an op."""
