"""The demo set's language: one table of words and templates, by which captions are both written and read.

A template is a string of words and slots. `[...]` is optional; capitals are short for what `MACROS` holds; `role:kind`
is a slot that states the fact of that name (`a:colour`, `scene:position`), and `:kind` a slot that states nothing but
has synonyms. `write` fills the slots from a scene's facts; `parse` reads with the same templates, compiled to regular
expressions.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from pycap.data.demo_scene import OPPOSITE, SETTINGS, Scene, Settings, choose, choose_weighted

Fact = str | int

# kind -> value -> the phrases that say it, the usual one first. Of each kind, a phrase says one value only.
WORDS: dict[str, dict[Fact, tuple[str, ...]]] = {
    "count": {1: ("a", "one", "a single")},
    "counts": {2: ("two", "a pair of"), 3: ("three",)},
    "size": {"large": ("large", "big"), "small": ("small", "little", "tiny")},
    "texture": {"solid": ("solid",), "striped": ("striped",)},
    "colour": {name: (name,) for name in SETTINGS.colours},
    "shape": {
        "circle": ("circle", "disc"),
        "square": ("square",),
        "triangle": ("triangle",),
        "star": ("star",),
        "cross": ("cross",),
        "ring": ("ring", "hoop"),
    },
    "shapes": {
        "circle": ("circles", "discs"),
        "square": ("squares",),
        "triangle": ("triangles",),
        "star": ("stars",),
        "cross": ("crosses",),
        "ring": ("rings", "hoops"),
    },
    "position": {
        "left": ("on the left", "on the left side", "at the left"),
        "right": ("on the right", "on the right side", "at the right"),
        "top": ("at the top", "near the top"),
        "bottom": ("at the bottom", "near the bottom"),
        "centre": ("in the centre", "in the middle"),
    },
    "relation": {
        "left": ("to the left of", "left of"),
        "right": ("to the right of", "right of"),
        "above": ("above", "over"),
        "below": ("below", "under"),
    },
    "side": {
        "left": ("on the left",),
        "right": ("on the right",),
        "above": ("at the top",),
        "below": ("at the bottom",),
    },
    "background": {name: (name,) for name in SETTINGS.backgrounds},
    "background_texture": {"plain": ("plain",), "checked": ("checked", "checkered")},
    "view": {"": ("a picture of", "an image of", "a drawing of")},
    "on": {"": ("on", "against")},
}

MACROS = {
    "A": "a:count [a:size] [a:texture] a:colour a:shape",
    "B": "b:count [b:size] [b:texture] b:colour b:shape",
    "WHERE": "scene:position",
    "GROUND": "[scene:background_texture] scene:background background",
}

# Templates and how often each is taken. For a group, BE is "is" or "are", and `count` and `shape` follow the number.
GROUP_TEMPLATES: dict[str, float] = {
    "A": 1.0,
    ":view A": 0.3,
    "A WHERE": 4.0,
    "there BE A WHERE": 0.6,
    "A BE WHERE": 0.6,
    ":view A WHERE": 0.3,
    "WHERE there BE A": 0.3,
    "A :on a GROUND": 2.5,
    "there BE A :on a GROUND": 0.5,
    "A with a GROUND": 0.3,
    "a GROUND with A": 0.3,
    "A WHERE :on a GROUND": 0.7,
    "a GROUND with A WHERE": 0.2,
}
PAIR_TEMPLATES: dict[str, float] = {
    "A and B": 1.0,
    "there BE A and B": 0.3,
    "A scene:relation B": 4.0,
    "A BE scene:relation B": 0.6,
    "there BE A scene:relation B": 0.5,
    ":view A scene:relation B": 0.3,
    "A a:side and B b:side": 0.6,
    "A and B :on a GROUND": 0.6,
    "A scene:relation B :on a GROUND": 0.6,
}

PLURAL = {"count": "counts", "shape": "shapes"}
BASIC = ("count", "colour", "shape")


@dataclass(frozen=True)
class Style:
    """How captions are written; all styles are read alike. The defaults are the demo set's.

    words: as `WORDS`, of which each phrase must be one. groups, pairs: templates of `GROUP_TEMPLATES` and `PAIR_TEMPLATES` with
    weights of their own. settings: how often what is told.
    """

    words: Mapping[str, Mapping[Fact, tuple[str, ...]]] = field(default_factory=lambda: WORDS)
    groups: Mapping[str, float] = field(default_factory=lambda: GROUP_TEMPLATES)
    pairs: Mapping[str, float] = field(default_factory=lambda: PAIR_TEMPLATES)
    settings: Settings = SETTINGS


STYLE = Style()


@dataclass(frozen=True)
class Slot:
    """A place in a template: the fact it states (None: only a choice of synonyms) and the kind of its phrases."""

    fact: str | None
    kind: str
    optional: bool


@dataclass(frozen=True)
class Template:
    """A template taken apart for one grammatical number: words as they are, and slots."""

    parts: tuple[str | Slot, ...]
    pattern: re.Pattern[str]


def facts(scene: Scene, swap: bool = False) -> dict[str, Fact]:
    """Everything that a caption may state about the scene, by the slots' names.

    `swap` names the two things of a pair the other way round (and turns their relation); a group has one way only.
    """
    known: dict[str, Fact] = {
        "scene:background": scene.background,
        "scene:background_texture": scene.background_texture,
    }
    things = scene.things[::-1] if swap else scene.things
    for role, thing in zip("ab", things, strict=False):
        known[f"{role}:count"] = scene.count
        known[f"{role}:size"] = thing.size
        known[f"{role}:texture"] = thing.texture
        known[f"{role}:colour"] = thing.colour
        known[f"{role}:shape"] = thing.shape
    if scene.position is not None:
        known["scene:position"] = scene.position
    if scene.relation is not None:
        relation = OPPOSITE[scene.relation] if swap else scene.relation
        known |= {"scene:relation": relation, "a:side": relation, "b:side": OPPOSITE[relation]}
    return known


def write(scene: Scene, rng: np.random.Generator, style: Style = STYLE) -> str:
    """A true caption of the scene: a template by lot, optional facts by lot, synonyms by lot.

    At most `most_words` words of the style's settings, and at least `further_facts` facts besides count, colour and shape.
    """
    settings = style.settings
    while True:
        pair = scene.relation is not None
        usual = rng.random() < settings.usual_order
        known = facts(scene, swap=pair and usual != (scene.relation in ("left", "above")))
        text = choose_weighted(rng, style.pairs if pair else style.groups)
        words: list[str] = []
        further = 0
        for part in compiled(text, plural=scene.count > 1).parts:
            if isinstance(part, str):
                words.append(part)
            elif part.fact is None:
                words.append(_phrase(part.kind, "", rng, style))
            elif not part.optional or rng.random() < _mention(part.kind, known[part.fact], settings):
                words.append(_phrase(part.kind, known[part.fact], rng, style))
                further += part.fact.partition(":")[2] not in BASIC
        caption = " ".join(words)
        if further >= settings.further_facts and len(caption.split()) <= settings.most_words:
            return caption


def parse(caption: str) -> dict[str, Fact] | None:
    """What the caption states, by the slots' names; None where it is no caption of the grammar.

    Case, surplus blanks and one final period are ignored; nothing else is.
    """
    text = " ".join(caption.lower().split())
    if text.endswith("."):
        text = text[:-1].rstrip()
    return next(readings(text), None)


def readings(text: str) -> Iterator[dict[str, Fact]]:
    """Every reading of the (normalised) text that some template gives."""
    for template in _all_templates():
        match = template.pattern.fullmatch(text + " ")
        if match:
            yield {
                slot.fact: _values(slot.kind)[said]
                for slot in template.parts
                if isinstance(slot, Slot) and slot.fact and (said := match[slot.fact.replace(":", "_")]) is not None
            }


def disagreements(caption: str, scene: Scene) -> list[str]:
    """Why the caption is not true of the scene, one line a reason; empty where it is true."""
    claims = parse(caption)
    if claims is None:
        return ["is no caption of the grammar"]
    pair = scene.relation is not None
    if pair != ("b:shape" in claims):
        return ["speaks of one kind of object, but two are there" if pair else "speaks of two objects of two kinds"]
    ways = [facts(scene, swap) for swap in ((False, True) if pair else (False,))]
    wrong = [[fact for fact, value in claims.items() if known[fact] != value] for known in ways]
    best = min(range(len(ways)), key=lambda way: len(wrong[way]))
    return [f"{fact} says {claims[fact]}, is {ways[best][fact]}" for fact in wrong[best]]


@functools.cache
def compiled(text: str, plural: bool) -> Template:
    """Take a template's text apart for the singular or the plural."""
    for macro, meaning in MACROS.items():
        text = re.sub(rf"\b{macro}\b", meaning, text)
    parts: list[str | Slot] = []
    pattern = ""
    for word in text.split():
        bare = word.strip("[]")
        if bare == "BE":
            bare = "are" if plural else "is"
        role, colon, kind = bare.partition(":")
        if not colon:
            parts.append(bare)
            pattern += f"{bare} "
            continue
        kind = PLURAL.get(kind, kind) if plural else kind
        slot = Slot(bare if role else None, kind, optional=word != bare)
        said = "|".join(re.escape(phrase) for phrase in _values(kind))
        said = f"(?P<{bare.replace(':', '_')}>{said}) " if role else f"(?:{said}) "
        parts.append(slot)
        pattern += f"(?:{said})?" if slot.optional else said
    return Template(tuple(parts), re.compile(pattern))


@functools.cache
def _values(kind: str) -> dict[str, Fact]:
    """Phrase -> the value it says."""
    return {phrase: value for value, phrases in WORDS[kind].items() for phrase in phrases}


@functools.cache
def _all_templates() -> tuple[Template, ...]:
    groups = [compiled(text, plural) for text in GROUP_TEMPLATES for plural in (False, True)]
    return (*groups, *(compiled(text, False) for text in PAIR_TEMPLATES))


def _phrase(kind: str, value: Fact, rng: np.random.Generator, style: Style) -> str:
    """One of the phrases that say the value, mostly the first."""
    usual, *others = style.words[kind][value]
    return choose(rng, others) if others and rng.random() >= style.settings.usual_phrase else usual


def _mention(kind: str, value: Fact, settings: Settings) -> float:
    """The probability that an optional slot is filled."""
    if kind == "size":
        return settings.mention_size
    by_value = {"texture": settings.mention_texture, "background_texture": settings.mention_background_texture}
    return by_value[kind][str(value)]
