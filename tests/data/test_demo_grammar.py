"""The demo set's language: every caption is true of its scene, and `is_true` accepts nothing else."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from pycap.data import demo, demo_grammar
from pycap.data.demo import Scene, explain, is_true
from pycap.data.demo_scene import SETTINGS
from tests.data.scenes import GROUP, ONE, PAIR


def test_every_caption_is_true_of_its_own_scene(told: list[tuple[Scene, str]]) -> None:
    for scene, caption in told:
        assert explain(caption, scene) == "true", (caption, scene)
        assert is_true(f"{caption.capitalize()}.", scene) and is_true(f"  {caption} . ", scene)


def test_captions_are_short_plain_words_and_never_vague(told: list[tuple[Scene, str]]) -> None:
    for scene, caption in told:
        words = caption.split()
        assert all(re.fullmatch("[a-z']+", word) for word in words) and len(words) <= 14
        claims = demo.parse(caption)
        for role in "ab"[: len(scene.things)]:
            assert {f"{role}:count", f"{role}:colour", f"{role}:shape"} <= set(claims)
        assert len(claims) > 3 * len(scene.things)


def test_thousands_of_captions_are_possible_and_all_words_occur(told: list[tuple[Scene, str]]) -> None:
    captions = {caption for _, caption in told}
    assert len(captions) >= 3000
    claims = {item for caption in captions for item in demo.parse(caption).items()}
    for fact, values in {
        "a:count": set(SETTINGS.counts),
        "a:shape": set(SETTINGS.shapes),
        "a:colour": set(SETTINGS.colours),
        "a:size": set(SETTINGS.sizes),
        "a:texture": set(SETTINGS.textures),
        "scene:position": set(SETTINGS.positions),
        "scene:relation": set(SETTINGS.relations),
        "a:side": set(SETTINGS.relations),
        "scene:background": set(SETTINGS.backgrounds),
        "scene:background_texture": set(SETTINGS.background_textures),
    }.items():
        assert {value for name, value in claims if name == fact} == values
    spoken = {
        word for phrases in demo_grammar.WORDS.values() for said in phrases.values() for word in " ".join(said).split()
    }
    assert spoken <= {word for caption in captions for word in caption.split()}


def test_no_phrase_has_two_meanings(told: list[tuple[Scene, str]]) -> None:
    for kind, values in demo_grammar.WORDS.items():
        phrases = [phrase for said in values.values() for phrase in said]
        assert len(phrases) == len(set(phrases)), kind
    for _, caption in told:
        first, *others = demo_grammar.readings(caption)
        assert all(other == first for other in others), caption


@pytest.mark.parametrize(
    ("caption", "scene"),
    [
        ("two large red circles on the left", GROUP),
        ("a pair of big striped red discs", GROUP),
        ("there are two red circles against a checkered grey background", GROUP),
        ("A single tiny yellow star at the top.", ONE),
        ("a plain black background with one solid yellow star", ONE),
        ("a small white square to the left of a blue hoop", PAIR),
        ("one large striped blue ring is right of a white square", PAIR),
        ("a blue ring on the right and a white square on the left", PAIR),
        ("a blue ring and a white square", PAIR),
    ],
)
def test_true_captions(caption: str, scene: Scene) -> None:
    assert explain(caption, scene) == "true" and is_true(caption, scene)


@pytest.mark.parametrize(
    ("caption", "scene", "reason"),
    [
        ("two large blue circles on the left", GROUP, "a:colour says blue, is red"),
        ("three large red circles on the left", GROUP, "a:count says 3, is 2"),
        ("a large red circle on the left", GROUP, "a:count says 1, is 2"),
        ("two large red squares on the left", GROUP, "a:shape says square, is circle"),
        ("two small red circles on the left", GROUP, "a:size says small, is large"),
        ("two solid red circles on the left", GROUP, "a:texture says solid, is striped"),
        ("two large red circles on the right", GROUP, "scene:position says right, is left"),
        ("two red circles on a blue background", GROUP, "scene:background says blue, is grey"),
        ("two red circles on a plain grey background", GROUP, "scene:background_texture says plain, is checked"),
        ("a white square to the right of a blue ring", PAIR, "scene:relation says right, is left"),
        ("a white square above a blue ring", PAIR, "scene:relation says above, is left"),
        ("a blue ring left of a white square", PAIR, "scene:relation says left, is right"),
        ("a blue ring on the left and a white square on the right", PAIR, "a:side says left, is right"),
        (
            "a blue square to the left of a white ring",
            PAIR,
            "a:colour says blue, is white; b:colour says white, is blue",
        ),
        ("a large white square and a blue ring", PAIR, "a:size says large, is small"),
        ("a white square and a solid blue ring", PAIR, "b:texture says solid, is striped"),
        ("a white square", PAIR, "one kind of object"),
        ("a yellow star and a red circle", ONE, "two kinds"),
        ("a yellow star on the top", ONE, "no caption of the grammar"),
    ],
)
def test_false_captions_and_the_reason(caption: str, scene: Scene, reason: str) -> None:
    assert not is_true(caption, scene)
    assert reason in explain(caption, scene)


def test_one_fact_changed_makes_the_captions_that_state_it_false(told: list[tuple[Scene, str]]) -> None:
    """Change one fact of the scene: a caption becomes false if and only if it states that fact."""
    checked: dict[str, set[bool]] = {}

    def other(options: object, value: object, *but: object) -> object:
        return next(option for option in options if option not in (value, *but))

    for scene, caption in told[:3000]:
        claims = demo.parse(caption)
        (first, *rest) = scene.things
        states_first = {key: set() for key in ("colour", "shape", "size", "texture")}
        for key in states_first:
            for role in "ab":
                same = all(claims.get(f"{role}:{name}") == getattr(first, name) for name in ("colour", "shape"))
                if same and f"{role}:{key}" in claims:
                    states_first[key].add(role)
        others = [thing.colour for thing in rest], [thing.shape for thing in rest]
        changes = {
            "colour": replace(first, colour=other(SETTINGS.colours, first.colour, scene.background, *others[0])),
            "shape": replace(first, shape=other(SETTINGS.shapes, first.shape, *others[1])),
            "size": replace(first, size=other(SETTINGS.sizes, first.size)),
            "texture": replace(first, texture=other(SETTINGS.textures, first.texture)),
        }
        outcomes = {
            key: (bool(states_first[key]), replace(scene, things=(thing, *rest))) for key, thing in changes.items()
        }
        shades = [thing.colour for thing in scene.things]
        background = other(SETTINGS.backgrounds, scene.background, *shades)
        outcomes["background"] = "scene:background" in claims, replace(scene, background=background)
        texture = other(SETTINGS.background_textures, scene.background_texture)
        stated = "scene:background_texture" in claims
        outcomes["background_texture"] = stated, replace(scene, background_texture=texture)
        if scene.relation is None:
            outcomes["count"] = True, replace(scene, count=other(SETTINGS.counts, scene.count))
            position = other(SETTINGS.positions, scene.position)
            outcomes["position"] = "scene:position" in claims, replace(scene, position=position)
        else:
            stated = "scene:relation" in claims or "a:side" in claims
            outcomes["relation"] = stated, replace(scene, relation=other(SETTINGS.relations, scene.relation))
        for key, (stated, changed) in outcomes.items():
            assert is_true(caption, changed) is not stated, (caption, key, changed)
            checked.setdefault(key, set()).add(stated)
    assert {key for key, kinds in checked.items() if True in kinds} == set(checked) and len(checked) == 9
    assert all(checked[key] == {True, False} for key in ("size", "texture", "background", "position", "relation"))


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        ".",
        "a",
        "red",
        "two circles",
        "red circles on the left",
        "two red circle",
        "a red circles",
        "two two red circles",
        "two red red circles",
        "two large large red circles",
        "two red circles circles",
        "two red circles on the left on the left",
        "two red circles on the",
        "two red circles and",
        "two red large circles",
        "circles red two",
        "two red circles ..",
        "two red circles, on the left",
        "two red circles <unk>",
        "two red circles is on the left",
        "there is two red circles",
        "two red circles\ttwo red circles",
        "some red circles",
        "a picture of two red",
        "two orange circles",
        "two red circles on a grey",
        "two red circles left of two red circles",
        "the two red circles",
    ],
)
def test_garbage_is_false(garbage: str) -> None:
    for scene in (GROUP, ONE, PAIR):
        assert not is_true(garbage, scene)
        assert explain(garbage, scene) != "true"


def test_truncated_and_shuffled_captions_are_false_or_still_sentences(told: list[tuple[Scene, str]]) -> None:
    """Cut, doubled or swapped words: what is still called true must be read by the grammar as a true sentence."""
    rng = np.random.default_rng(0)
    refused = 0
    for scene, caption in told[:1500]:
        words = caption.split()
        at = int(rng.integers(len(words)))
        doubled = [*words[: at + 1], *words[at:]]
        assert not is_true(" ".join(doubled), scene), doubled
        assert not is_true(" ".join(words[::-1]), scene)
        cut = " ".join(words[:at])
        refused += not is_true(cut, scene)
        if is_true(cut, scene):
            assert {"a:count", "a:colour", "a:shape"} <= set(demo.parse(cut))
            assert ("b:shape" in demo.parse(cut)) == (len(scene.things) == 2)
    assert refused > 1000
