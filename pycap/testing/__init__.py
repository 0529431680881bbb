"""Checks for hand-written gradients and kernels; tests and benchmarks use them, library code does not."""

from pycap.testing.gradcheck import GradientError, gradcheck

__all__ = ["GradientError", "gradcheck"]
