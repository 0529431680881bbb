"""The demo set's scenes: what may be in one, how one is drawn by lot, and how it is painted.

Every list and every probability that makes the set harder or easier stands in `SETTINGS`. Lengths are in pixels of a
72x72 image, and scale with the size asked for.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
T = TypeVar("T")

FRAME = 72.0  # the side of the frame in which all lengths below are given


@dataclass(frozen=True)
class Settings:
    """All that sets how hard the demo set is. Mappings to numbers are weights, which need not sum to 1."""

    # What a scene holds.
    shapes: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross", "ring")
    colours: Mapping[str, Colour] = field(
        default_factory=lambda: {
            "red": (215, 25, 35),
            "yellow": (250, 225, 40),
            "green": (20, 150, 45),
            "blue": (35, 60, 225),
            "purple": (125, 30, 160),
            "pink": (255, 120, 190),
            "white": (250, 250, 250),
        }
    )
    backgrounds: Mapping[str, Colour] = field(
        default_factory=lambda: {
            "white": (240, 240, 240),
            "black": (18, 18, 18),
            "grey": (128, 128, 128),
            "blue": (130, 185, 245),
            "green": (165, 220, 160),
        }
    )
    sizes: Mapping[str, float] = field(default_factory=lambda: {"large": 0.5, "small": 0.5})
    textures: Mapping[str, float] = field(default_factory=lambda: {"solid": 0.65, "striped": 0.35})
    background_textures: Mapping[str, float] = field(default_factory=lambda: {"plain": 0.7, "checked": 0.3})
    counts: Mapping[int, float] = field(default_factory=lambda: {1: 0.4, 2: 0.35, 3: 0.25})
    positions: tuple[str, ...] = ("left", "right", "top", "bottom", "centre")
    relations: tuple[str, ...] = ("left", "right", "above", "below")
    pair: float = 0.15  # probability that a scene holds two different objects instead of one group
    # Kind ("shapes", "colours", "backgrounds", "positions", "relations") -> name -> weight, 1 where none is given, 0 for never.
    # Not in repr, of which the digest in demo.json is made: the demo set has no weights.
    weights: Mapping[str, Mapping[str, float]] = field(default_factory=dict, repr=False)

    # How it is painted.
    radius: Mapping[str, float] = field(default_factory=lambda: {"large": 10.5, "small": 7.0})
    radius_jitter: float = 0.02  # relative
    pitch: Mapping[str, float] = field(default_factory=lambda: {"large": 22.0, "small": 17.0})  # between centres
    group_offset: float = 19.0  # from the middle of the frame to a group's line
    pair_offset: float = 16.0  # from the middle of the frame to each object of a pair
    wobble: float = 2.0  # a group's line moves by up to this much, either way
    drift: float = 5.0  # and slides along itself by up to this much; so does each object of a pair, across its axis
    margin: float = 3.5  # kept free at the frame's edge: a centre crop of 64 of 72 cuts nothing off
    tilt: float = 6.0  # degrees, either way
    stripe: float = 2.0  # width of a stripe
    stripe_shade: float = 0.35  # how much of its colour a dark stripe keeps; a light one, on black, lacks that of white
    check: float = 9.0  # side of a background check
    check_shade: int = 24  # brightness step between checks, in 0..255
    colour_jitter: int = 8  # in 0..255, either way, per channel and object
    noise: int = 5  # in 0..255, either way, per pixel and channel

    # How it is told. Probabilities that a caption states a fact for which its template has room.
    usual_phrase: float = 0.7  # probability of the first phrase of those that say the same, so that words do not
    usual_order: float = 0.85  # drown the image's signal; of beginning a pair with the left or upper object
    mention_size: float = 0.4
    mention_texture: Mapping[str, float] = field(default_factory=lambda: {"solid": 0.1, "striped": 0.6})
    mention_background_texture: Mapping[str, float] = field(default_factory=lambda: {"plain": 0.05, "checked": 0.5})
    further_facts: int = 1  # at least so many besides count, colour and shape
    most_words: int = 14


SETTINGS = Settings()
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


@dataclass(frozen=True)
class Thing:
    """One object, or each of a group of identical ones."""

    shape: str
    colour: str
    size: str
    texture: str


@dataclass(frozen=True)
class Scene:
    """The truth about an image: a group of `count` identical things at `position`, or two things in a `relation`.

    `things` has one member for a group (then `relation` is None) and two for a pair (then `count` is 1 for each,
    `position` is None, and `relation` says where the first is as seen from the second: "left" is "left of").
    """

    things: tuple[Thing, ...]
    count: int
    position: str | None
    relation: str | None
    background: str
    background_texture: str

    def __post_init__(self) -> None:
        group = len(self.things) == 1 and self.position is not None and self.relation is None and self.count >= 1
        pair = len(self.things) == 2 and self.position is None and self.relation is not None and self.count == 1
        if not (group or pair):
            raise ValueError(f"{self} is neither one group with a position nor two single things with a relation")
        if any(thing.colour == self.background for thing in self.things):
            raise ValueError(f"{self} has a thing in the colour of the background")
        if pair and (self.things[0].shape, self.things[0].colour) == (self.things[1].shape, self.things[1].colour):
            raise ValueError(f"{self} has two things that a caption cannot tell apart; change a shape or a colour")

    def to_json(self) -> dict[str, Any]:
        """The scene as plain JSON values; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Scene:
        """Read what `to_json` wrote. Raises KeyError, TypeError or ValueError on anything else."""
        return cls(**{**value, "things": tuple(Thing(**thing) for thing in value["things"])})


def choose(rng: np.random.Generator, options: tuple[T, ...] | list[T]) -> T:
    """One of the options, each as likely; one draw of `rng`, and much faster than `rng.choice`."""
    return options[int(rng.random() * len(options))]


def choose_weighted(rng: np.random.Generator, weights: Mapping[T, float]) -> T:
    """One of the keys, as likely as its weight says; one draw of `rng`."""
    left = rng.random() * sum(weights.values())
    for option, weight in weights.items():
        left -= weight
        if left < 0:
            return option
    return option


def sample_scene(rng: np.random.Generator, settings: Settings = SETTINGS) -> Scene:
    """Draw a scene by lot with the probabilities of `settings`. Deterministic in the state of `rng`."""

    def one_of(kind: str, names: Iterable[str]) -> str:
        weights = settings.weights.get(kind, {})
        return choose_weighted(rng, {name: weights.get(name, 1.0) for name in names})

    background = one_of("backgrounds", settings.backgrounds)
    colours = [name for name in settings.colours if name != background]

    def thing() -> Thing:
        return Thing(
            one_of("shapes", settings.shapes),
            one_of("colours", colours),
            choose_weighted(rng, settings.sizes),
            choose_weighted(rng, settings.textures),
        )

    background_texture = choose_weighted(rng, settings.background_textures)
    first = thing()
    if rng.random() < settings.pair:
        second = thing()
        while (second.shape, second.colour) == (first.shape, first.colour):
            second = thing()
        relation = one_of("relations", settings.relations)
        return Scene((first, second), 1, None, relation, background, background_texture)
    count = choose_weighted(rng, settings.counts)
    return Scene((first,), count, one_of("positions", settings.positions), None, background, background_texture)


def place(scene: Scene, rng: np.random.Generator, settings: Settings = SETTINGS) -> list[tuple[Thing, float, float]]:
    """Each object of the scene with the x and y of its centre in the 72-pixel frame. No two overlap."""
    middle = FRAME / 2

    def around(spread: float) -> float:
        return float(rng.uniform(-spread, spread))

    if scene.relation is not None:
        # The first object's side on the axis of the relation; the second is opposite.
        sign = -1 if scene.relation in ("left", "above") else 1
        placed = []
        for thing, side in zip(scene.things, (sign, -sign), strict=True):
            along = middle + side * settings.pair_offset + around(settings.wobble)
            across = middle + around(settings.drift)
            x, y = (along, across) if scene.relation in ("left", "right") else (across, along)
            placed.append((thing, x, y))
        return placed

    (thing,) = scene.things
    pitch, radius = settings.pitch[thing.size], settings.radius[thing.size]
    if scene.position == "centre":
        half = pitch / 2
        line = [(step * pitch, 0.0) for step in np.arange(scene.count) - (scene.count - 1) / 2]
        upright = [(y, x) for x, y in line]
        layouts = {
            3: [[(-half, half * 0.58), (half, half * 0.58), (0.0, -half * 1.16)]],
        }
        offsets = choose(rng, layouts.get(scene.count, [line, upright]))
        x, y = middle + around(settings.wobble), middle + around(settings.wobble)
    else:
        room = FRAME / 2 - settings.margin - radius - (scene.count - 1) * pitch / 2
        slide = middle + around(max(0.0, min(settings.drift, room)))
        sign = -1 if scene.position in ("left", "top") else 1
        across = middle + sign * settings.group_offset + around(settings.wobble)
        steps = (np.arange(scene.count) - (scene.count - 1) / 2) * pitch
        if scene.position in ("left", "right"):
            offsets, x, y = [(0.0, step) for step in steps], across, slide
        else:
            offsets, x, y = [(step, 0.0) for step in steps], slide, across
    return [(thing, float(x + dx), float(y + dy)) for dx, dy in offsets]


def draw(scene: Scene, rng: np.random.Generator, size: int = 72, settings: Settings = SETTINGS) -> Image.Image:
    """Paint the scene as an RGB image of `size` x `size` pixels with smooth edges and mild noise.

    `rng` decides what the truth leaves open: exact places, shades, tilt and noise. settings: how much of each.
    """
    fine = 3  # painted so many times larger, then averaged down
    scale = size / FRAME * fine
    shift = int(rng.integers(-settings.colour_jitter, settings.colour_jitter, endpoint=True))
    ground = _shift(settings.backgrounds[scene.background], (shift, shift, shift))
    canvas = Image.new("RGB", (size * fine, size * fine), ground)
    if scene.background_texture == "checked":
        step = -settings.check_shade if sum(ground) > 3 * 128 else settings.check_shade
        canvas.paste(_shift(ground, (step, step, step)), (0, 0), _checks(size * fine, settings.check * scale))
    for thing, x, y in place(scene, rng, settings):
        radius = settings.radius[thing.size] * (1 + rng.uniform(-1, 1) * settings.radius_jitter) * scale
        half = math.ceil(radius) + 1
        corner = (round(x * scale) - half, round(y * scale) - half)
        tilt = math.radians(rng.uniform(-1, 1) * settings.tilt)
        mask = _silhouette(thing.shape, half, radius, tilt)
        jitter = rng.integers(-settings.colour_jitter, settings.colour_jitter, 3, endpoint=True).tolist()
        colour = _shift(settings.colours[thing.colour], jitter)
        paint = Image.new("RGB", mask.size, colour)
        if thing.texture == "striped":
            _stripe(paint, _stripe_colour(colour, ground, settings.stripe_shade), settings.stripe * scale)
        canvas.paste(paint, corner, mask)
    pixels = np.asarray(canvas.reduce(fine)).astype(np.int16)
    pixels += rng.integers(-settings.noise, settings.noise, pixels.shape, dtype=np.int8, endpoint=True)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _shift(colour: Colour, by: Sequence[int]) -> Colour:
    red, green, blue = (min(255, max(0, channel + step)) for channel, step in zip(colour, by, strict=True))
    return red, green, blue


@functools.cache
def _checks(side: int, cell: float) -> Image.Image:
    index = (np.arange(side) / cell).astype(np.int64)
    return Image.fromarray((((index[:, None] + index) % 2) * 255).astype(np.uint8))


def _stripe_colour(colour: Colour, ground: Colour, keep: float) -> Colour:
    """A dark shade of the colour; a light one where the dark one would be lost on a dark ground."""
    red, green, blue = colour
    if sum(ground) < 3 * 64 and 0.3 * red + 0.6 * green + 0.1 * blue < 128:
        return _mix(colour, (255, 255, 255), keep)
    return _mix(colour, (0, 0, 0), keep)


def _mix(colour: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (round(share * one + (1 - share) * two) for one, two in zip(colour, other, strict=True))
    return red, green, blue


def _stripe(paint: Image.Image, colour: Colour, width: float) -> None:
    """Paint diagonal stripes of a colour, and gaps of the same width, over a square."""
    pen, side = ImageDraw.Draw(paint), paint.width
    run = width * math.sqrt(2)  # the width of a diagonal stripe, along x
    for step in range(math.ceil(2 * side / (2 * run)) + 1):
        x = -side + 2 * run * step
        pen.polygon([(x, 0), (x + run, 0), (x + run + side, side), (x + side, side)], fill=colour)


def _silhouette(shape: str, half: int, radius: float, tilt: float) -> Image.Image:
    """The mask of a shape in the middle of a square of side `2 * half`; nothing of it reaches past `radius`."""
    mask = Image.new("L", (2 * half, 2 * half))
    pen = ImageDraw.Draw(mask)
    if shape in ("circle", "ring"):
        size = radius * 0.96
        pen.ellipse((half - size, half - size, half + size, half + size), fill=255)
        if shape == "ring":
            hole = radius * 0.5
            pen.ellipse((half - hole, half - hole, half + hole, half + hole), fill=0)
        return mask
    cosine, sine = math.cos(tilt) * radius, math.sin(tilt) * radius
    pen.polygon([(half + x * cosine - y * sine, half + x * sine + y * cosine) for x, y in _OUTLINES[shape]], fill=255)
    return mask


def _star() -> list[tuple[float, float]]:
    turn = [(math.pi * point / 5 - math.pi / 2, 1.0 if point % 2 == 0 else 0.42) for point in range(10)]
    return [(reach * math.cos(angle), reach * math.sin(angle) + 0.05) for angle, reach in turn]


# Corner points for a radius of 1, y downward.
_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)],
    "triangle": [(0.0, -0.92), (0.95, 0.82), (-0.95, 0.82)],
    "star": _star(),
    "cross": [
        (sx * x, sy * y)
        for sx, sy, corner in (
            (1, -1, [(0.3, 0.95), (0.3, 0.3), (0.95, 0.3)]),
            (1, 1, [(0.95, 0.3), (0.3, 0.3), (0.3, 0.95)]),
            (-1, 1, [(0.3, 0.95), (0.3, 0.3), (0.95, 0.3)]),
            (-1, -1, [(0.95, 0.3), (0.3, 0.3), (0.3, 0.95)]),
        )
        for x, y in corner
    ],
}
