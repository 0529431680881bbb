"""How much the captions of a set of images differ from each other, beside those that people wrote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Variety:
    """captions: of so many images, one each; different: of them; most_common: the part of the images that have the most
    frequent one, which is `example`. people: the part that differs of one caption by people of each image."""

    captions: int
    different: int
    most_common: float
    example: str
    people: float

    @property
    def distinct(self) -> float:
        """Different captions, as a part of all."""
        return self.different / max(self.captions, 1)


def variety(captions: Mapping[Any, str], references: Mapping[Any, Sequence[str]]) -> Variety:
    """Of one caption an image, and people's of the same images; both by the image's id."""
    count = Counter(captions.values())
    example, times = count.most_common(1)[0] if count else ("", 0)
    first = [own[0] for own in references.values() if own]
    people = len(set(first)) / max(len(first), 1)
    return Variety(len(captions), len(count), times / max(len(captions), 1), example, people)
