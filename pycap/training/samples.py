"""samples.html: images with what the model says of them and what people said, and which run this is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pycap.data.disk import write_whole
from pycap.data.images import viewed
from pycap.pages import Html, badge, document, picture
from pycap.pages.parts import escaped

_NO_BREAK = "\u00a0"  # a space at which no line ends
_RAREST = -math.log(1e9)  # log-probability; one in more than a billion says nothing to anybody


@dataclass(frozen=True)
class Sample:
    """An image (uint8 [S,S,3]) with what the model and what people say of it. `verdict`: true or false, where it is known."""

    file_name: str
    pixels: Any
    generated: str
    logprob: float
    human: Sequence[str]
    verdict: str = ""


def write_samples(
    path: Path, title: str, intro: str, about: Mapping[str, str], scores: Mapping[str, float], samples: Sequence[Sample]
) -> None:
    """A page of images with generated captions over human ones; self-contained, a whole file or nothing.

    about, scores: of what made the captions, by name.
    """
    judged = [s.verdict == "true" for s in samples if s.verdict]
    told = {name: f"{value:.4f}" for name, value in scores.items()}
    told |= {"true of those shown": f"{sum(judged)} of {len(judged)}"} if judged else {}
    cards = "\n".join(_card(s) for s in samples)
    body = f'<div class="cards">\n{cards}\n</div>'
    write_whole(path, document(title, body, intro, [row for row in (about, told) if row]))


def likelihood(logprob: float) -> str:
    """A log-probability (natural) in words: as it is, and as a share of all that the model might have said."""
    told = "log-probability " + f"{logprob:.2f}".replace("-", "\u2212")
    if logprob > math.log(0.001):
        return f"{told} ({100 * math.exp(logprob):.1f}{_NO_BREAK}%)"
    if logprob > _RAREST:
        among = float(f"{math.exp(-logprob):.2g}")
        share = f"1 in {among:,.0f}" if among < 1e6 else f"1 in {among / 1e6:g} million"
        return f"{told} ({share.replace(' ', _NO_BREAK)})"
    return told


def _card(sample: Sample) -> Html:
    pixels = np.ascontiguousarray(sample.pixels)
    shown = sample.human[0] if sample.human else sample.generated
    image = picture(viewed(pixels), f"{sample.file_name}: {shown}", pixels.shape[1], pixels.shape[0])
    verdict = f"<p>{badge(sample.verdict, sample.verdict == 'true')}</p>" if sample.verdict else ""
    human = "".join(f"<li>{escaped(text)}</li>" for text in sample.human)
    return Html(
        f'<figure class="card">{image}<figcaption><div><p class="caption">{escaped(sample.generated or "(no words)")}</p>'
        f'{verdict}<p class="note">{escaped(likelihood(sample.logprob))}<br>{escaped(sample.file_name)}</p></div>'
        f'<ul class="others">{human}</ul></figcaption></figure>'
    )
