"""A tiny trained captioner and its demo set, as the tests of runs have them."""

from tests.train.conftest import _selection, data, trained

__all__ = ["_selection", "data", "trained"]
