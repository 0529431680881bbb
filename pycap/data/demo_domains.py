"""The demo domains: drawn data sets that differ as COCO, Flickr8k, Flickr30k and ImageCLEF do, each in the layout of its
namesake, and single objects by class to pre-train on.

    folder = generate("data/demo_domains")      # folder/imagenet, coco, flickr8k, flickr30k, imageclef, target
    scenes = load_scenes(folder)                # the truth of imageclef/ and target/ by image id, for pycap.data.demo.is_true

What a domain holds stands in `DOMAINS` as data; all of them are written in one grammar (`demo_grammar`), with words and
templates that one uses often and another never. docs/paper.md has the table and the reasons. Captions speak of left and
right: training must not mirror these images.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pycap.data import DataError, demo_folder, demo_layouts
from pycap.data.demo_grammar import GROUP_TEMPLATES, PAIR_TEMPLATES, WORDS, Style, write
from pycap.data.demo_layouts import Drawn
from pycap.data.demo_scene import SETTINGS, Scene, Settings, draw, sample_scene

MANIFEST = "domains.json"
TRUTH = "scenes.json"  # of the target's images, which their folders do not hold
REVISION = 1  # raise it when the same table comes to give other images or captions
_JPEG = {"quality": 90, "subsampling": 0}


@dataclass(frozen=True)
class Domain:
    """One drawn data set. splits: split -> images. layout: how it is written (`demo_layouts.LAYOUTS`).

    settings: what is drawn, how it is painted and how much is told. usual: phrases that go before the others that say the
    same. never: phrases that this domain does not know. groups, pairs: templates of the grammar that have other weights than
    in the demo set (0: never). captions: of each image, all different. balanced: every shape of every colour in turn, as often
    as any other.
    """

    splits: Mapping[str, int]
    layout: str
    settings: Settings
    usual: frozenset[str] = frozenset()
    never: frozenset[str] = frozenset()
    groups: Mapping[str, float] = field(default_factory=dict)
    pairs: Mapping[str, float] = field(default_factory=dict)
    captions: int = 5
    balanced: bool = False

    def drawn(self, index: int) -> Settings:
        """What its image of that number is drawn from."""
        if not self.balanced:
            return self.settings
        things = list(itertools.product(self.settings.colours, self.settings.shapes))
        colour, shape = things[index % len(things)]
        others = {"backgrounds": {colour: 0.0}}
        return replace(self.settings, shapes=(shape,), colours={colour: self.settings.colours[colour]}, weights=others)

    @cached_property
    def style(self) -> Style:
        """How its captions are written."""
        words = {
            kind: {
                value: tuple(sorted((p for p in phrases if p not in self.never), key=lambda p: p not in self.usual))
                for value, phrases in values.items()
            }
            for kind, values in WORDS.items()
        }
        return Style(words, {**GROUP_TEMPLATES, **self.groups}, {**PAIR_TEMPLATES, **self.pairs}, self.settings)


def _phrases(text: str) -> frozenset[str]:
    return frozenset(phrase.strip() for phrase in text.split(","))


def _settings(weights: Mapping[str, Mapping[str, float]], **changes: Any) -> Settings:
    return replace(SETTINGS, weights=weights, **changes)


# How the target and the Flickr sets speak, and COCO does not.
_SPOKEN = "disc, discs, hoop, hoops, big, little, in the middle, left of, right of, over, under, a pair of, against"
_OTHER = "one, a single, tiny, on the left side, on the right side, at the left, at the right, checkered"

DOMAINS: dict[str, Domain] = {
    # Single objects of every shape and colour: what they are, never where or how many.
    "imagenet": Domain(
        {"train": 5880, "val": 420},
        "classes",
        _settings({}, counts={1: 1.0}, pair=0.0, drift=9.0, wobble=4.0),
        balanced=True,
    ),
    # By far the largest; plain speech in few words; no stars, no pink, nothing on green.
    "coco": Domain(
        {"train": 8000, "val": 4000},
        "coco",
        _settings(
            {
                "shapes": {"star": 0.0, "ring": 0.5},
                "colours": {"pink": 0.0, "purple": 0.5},
                "backgrounds": {"green": 0.0, "black": 0.5},
            },
            usual_phrase=0.8,
        ),
        never=_phrases(f"{_SPOKEN}, {_OTHER}") - {"one", "on the left side", "on the right side", "against"},
    ),
    # Small; few shapes and colours, many stars; the target's speech.
    "flickr8k": Domain(
        {"train": 900, "val": 100, "test": 100},
        "flickr8k",
        _settings(
            {
                "shapes": {"star": 3.0, "circle": 2.0, "cross": 0.0, "triangle": 0.3, "square": 0.3},
                "colours": {"pink": 2.0, "red": 2.0, "green": 0.2, "yellow": 0.2},
                "backgrounds": {"green": 2.0, "black": 0.2, "grey": 0.3},
            },
            usual_phrase=0.6,
            mention_size=0.5,
        ),
        usual=_phrases(_SPOKEN),
        groups={"there BE A WHERE": 2.0, "A BE WHERE": 2.0, "A :on a GROUND": 1.0, "A WHERE :on a GROUND": 1.5},
    ),
    # Larger and more varied than flickr8k, in the same speech; few crosses and triangles.
    "flickr30k": Domain(
        {"train": 2400, "val": 150, "test": 150},
        "flickr30k",
        _settings(
            {
                "shapes": {"star": 2.0, "ring": 1.5, "cross": 0.2, "triangle": 0.3},
                "colours": {"pink": 1.5, "yellow": 0.3, "white": 0.3},
                "backgrounds": {"green": 2.0, "black": 0.2},
            },
            usual_phrase=0.5,
            mention_size=0.5,
            pair=0.2,
        ),
        usual=_phrases(_SPOKEN),
        groups={"there BE A WHERE": 2.0, "A BE WHERE": 2.0, "A WHERE :on a GROUND": 1.5},
        pairs={"A BE scene:relation B": 2.0, "there BE A scene:relation B": 2.0},
    ),
    # The target: everything occurs, in noisier pictures of looser arrangement, told in many ways.
    "imageclef": Domain(
        {"val": 400, "target": 1600},
        "imageclef",
        _settings(
            {
                "shapes": {"ring": 1.2},
                "colours": {"pink": 1.2},
                "backgrounds": {"green": 1.2},
            },
            usual_phrase=0.45,
            usual_order=0.6,
            mention_size=0.5,
            pair=0.2,
            noise=9,
            colour_jitter=12,
            tilt=10.0,
        ),
        usual=_phrases(_SPOKEN),
        groups={"there BE A WHERE": 2.0, "A BE WHERE": 2.0, "A WHERE :on a GROUND": 1.5},
        pairs={"A BE scene:relation B": 2.0, "there BE A scene:relation B": 2.0},
        captions=8,
    ),
}


def generate(root: str | Path, *, share: float = 1.0, seed: int = 0, size: int = 72) -> Path:
    """Make all domains in `root` and return it; do nothing where the same ones already stand there.

    share: scales the number of images of every split (one is the least). The folder then holds `imagenet/{train,val}/CLASS/`,
    `coco/`, `flickr8k/`, `flickr30k/` and `imageclef/` in the layouts of those data sets, `target/` with the target's
    unlabelled images, `scenes.json` (the truth of imageclef's and target's images) and `domains.json` (what was asked for,
    written last). An image depends on `seed`, its domain, split and number alone; none occurs twice. It is built beside
    `root` and renamed into place.
    Raises ValueError for parameters out of range, DataError where `root` holds something else.
    """
    root = Path(root)
    if not 0 < share <= 10 or size < 48 or seed < 0:
        raise ValueError(
            f"share={share}, size={size}, seed={seed}: share is in (0, 10], size 48 or more, seed not negative"
        )
    counts = {
        name: {split: max(1, round(count * share)) for split, count in domain.splits.items()}
        for name, domain in DOMAINS.items()
    }
    return demo_folder.ensure(
        root,
        MANIFEST,
        {"images": counts, "seed": seed, "size": size, "revision": REVISION, "table": _digest()},
        lambda building: _build(building, counts, seed, size),
        whole=lambda root: _images(root) == sum(sum(splits.values()) for splits in counts.values()),
        ours=lambda names: MANIFEST in names,
    )


def load_scenes(root: str | Path) -> dict[str, Scene]:
    """The truth of the images of `imageclef/` and `target/` by image id. DataError where it is missing or damaged."""
    path = Path(root) / TRUTH
    try:
        return {key: Scene.from_json(value) for key, value in json.loads(path.read_text("utf-8")).items()}
    except OSError as error:
        raise DataError(
            f"{path} is missing; make the demo domains again with pycap.data.demo_domains.generate"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({error}); remove {root} and make the demo domains again") from error


def examples(name: str, split: str, count: int, seed: int, size: int, seen: set[bytes]) -> list[Drawn]:
    """The first `count` images of a domain's split, none of which is among `seen`, to whose digests they are added."""
    domain = DOMAINS[name]
    places = [list(DOMAINS).index(name), list(domain.splits).index(split)]
    drawn = []
    for index in range(count):
        attempt = 0
        while True:
            rng = np.random.default_rng([seed, 1, *places, index, attempt])
            scene = sample_scene(rng, domain.drawn(index))
            captions: dict[str, None] = {}
            while len(captions) < domain.captions:
                captions[write(scene, rng, domain.style)] = None
            jpeg = demo_layouts.encode(draw(scene, rng, size, domain.settings), **_JPEG)
            digest = hashlib.sha256(jpeg).digest()
            if digest not in seen:
                break
            attempt += 1
        seen.add(digest)
        drawn.append(Drawn(split, index, scene, tuple(captions), jpeg))
    return drawn


def _build(root: Path, counts: Mapping[str, Mapping[str, int]], seed: int, size: int) -> None:
    seen: set[bytes] = set()
    truth: dict[str, Any] = {}
    for name, domain in DOMAINS.items():
        drawn = [d for split, count in counts[name].items() for d in examples(name, split, count, seed, size, seen)]
        keys = demo_layouts.LAYOUTS[domain.layout](root, name, drawn, size)
        if "target" in domain.splits:
            truth = {key: d.scene.to_json() for key, d in zip(keys, drawn, strict=True)}
    (root / TRUTH).write_text(json.dumps(truth), encoding="utf-8")


def _digest() -> str:
    """Changes with every setting, word and template of the table."""
    table = [
        (name, asdict(domain.settings), repr(domain.style), domain.captions, domain.balanced)
        for name, domain in DOMAINS.items()
    ]
    return hashlib.sha256(repr(table).encode()).hexdigest()[:16]


def _images(root: Path) -> int:
    return sum(name.endswith(".jpg") for _, _, names in os.walk(root) for name in names)
