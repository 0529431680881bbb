"""Changed images: the same for the same numbers, of every kind, and deep enough to reach a decoder."""

from __future__ import annotations

import random
import zlib
from collections import Counter

import pytest

from benchmarks import mutations
from benchmarks.mutations import mutate, seeds
from pycap.data import images
from pycap.data.images import ImageError, decode_image


def test_the_seeds_are_sound() -> None:
    made = seeds()
    assert {name.rpartition(".")[2] for name in made} == {"jpeg", "png", "webp", "gif", "bmp"}
    for name, image in made.items():
        assert decode_image(image, 32, name).std() > 10
    assert made == seeds.__wrapped__()


def test_a_seed_and_a_number_say_what_is_done() -> None:
    sound = seeds()
    first = [mutate(sound, 1, number) for number in range(300)]
    assert first[7] == mutate(sound, 1, 7)
    assert len({mutant.data for mutant in first}) > 290
    assert sum(mutant.data == mutate(sound, 2, number).data for number, mutant in enumerate(first)) < 3
    done = Counter(kind for mutant in first for kind in mutant.how.partition(": ")[2].split(", "))
    assert set(done) == {*mutations._ANY, *mutations._FORMS}


def test_a_pngs_frame_changes_and_its_sum_is_right() -> None:
    sizes = set()
    for number in range(40):
        data = bytearray(seeds()["plain.png"])
        mutations._FORMS["PNG frame"](data, random.Random(number), {})
        assert zlib.crc32(data[12:29]) == int.from_bytes(data[29:33], "big")
        sizes.add(bytes(data[16:24]))
    assert len(sizes) > 5


@pytest.mark.parametrize(
    ("kind", "image"), [("JPEG frame", "plain.jpeg"), ("PNG frame", "plain.png"), ("GIF size", "moving.gif")]
)
def test_changes_of_a_frame_get_past_the_formats_reader(kind: str, image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 100_000)  # else some of them take half a second to decode
    reasons = Counter[str]()
    for number in range(40):
        data = bytearray(seeds()[image])
        mutations._FORMS[kind](data, random.Random(number), {})
        try:
            decode_image(bytes(data), 16)
        except ImageError as error:
            reasons[error.reason] += 1
    assert any("pixels are more than" in reason for reason in reasons), reasons
