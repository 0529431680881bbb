"""What the tests of the demo set share."""

from __future__ import annotations

import numpy as np
import pytest

from pycap.data import demo
from pycap.data.demo_scene import Scene, sample_scene


@pytest.fixture(scope="module")
def told() -> list[tuple[Scene, str]]:
    """2,000 scenes, each with three captions."""
    scenes = []
    for index in range(2000):
        rng = np.random.default_rng([11, index])
        scene = sample_scene(rng)
        scenes += [(scene, demo.write(scene, rng)) for _ in range(3)]
    return scenes
