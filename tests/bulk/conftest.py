"""A folder of files that look like images, and a tiny trained captioner with its demo set, as the tests of runs have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bulk.jobs import COUNT, folder
from tests.train.conftest import _selection, data, trained

__all__ = ["_selection", "data", "trained"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return folder(tmp_path / "images", COUNT)
