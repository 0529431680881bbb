"""Three scenes that tests of the demo set speak of."""

from __future__ import annotations

from pycap.data.demo_scene import Scene, Thing

GROUP = Scene((Thing("circle", "red", "large", "striped"),), 2, "left", None, "grey", "checked")
ONE = Scene((Thing("star", "yellow", "small", "solid"),), 1, "top", None, "black", "plain")
PAIR = Scene(
    (Thing("square", "white", "small", "solid"), Thing("ring", "blue", "large", "striped")),
    1,
    None,
    "left",
    "green",
    "plain",
)
