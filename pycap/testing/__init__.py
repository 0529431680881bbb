"""Checks for hand-written gradients and kernels; tests and benchmarks use them, library code does not."""

from pycap.testing.arguments import Case
from pycap.testing.cases import CASES
from pycap.testing.compare import ComparisonError, compare, compare_op
from pycap.testing.gradcheck import GradientError, gradcheck

__all__ = ["CASES", "Case", "ComparisonError", "GradientError", "compare", "compare_op", "gradcheck"]
