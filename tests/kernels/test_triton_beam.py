"""Beam search's kernel beyond the primitive's common cases: whole searches of selections, on whatever runs it, and refusals."""

from __future__ import annotations

import numpy as np
import pytest

from pycap import backends, decode
from pycap.autograd import Tensor
from pycap.backends import reference
from pycap.decode import Rules, Searches, device_beam_search, host_beam_search
from pycap.device import to_device
from pycap.testing.arguments import Double, InOut
from pycap.testing.cases_beam import END, beam_select
from tests.models.test_nic import batch, small_nic

OP = "beam"


def arguments(images=5, k=3, wide=4, most=6, seed=0):
    made = beam_select((images, k, wide, most), 0.7, np.random.default_rng(seed))
    return [a.array.copy() if isinstance(a, (Double, InOut)) else a for a in made]


def as_at_first(given):
    words, parents, scores, steps, done, finished, origins, history = given[:8]
    scores[:], finished[:] = -np.inf, -np.inf
    scores[:, 0] = 0
    for array in (words, parents, steps, done, origins, history):
        array[:] = 0


@pytest.mark.parametrize("k", [1, 3, 5, 10, 16])
def test_a_search_is_the_references_bit_for_bit(kernels, k):
    """Each step goes on from the one before. Some images are done early, some never."""
    rng, most = np.random.default_rng(k), 8
    mine, plain = (arguments(9, k, k + 1, most) for _ in range(2))
    as_at_first(mine)
    as_at_first(plain)
    for _ in range(most + 1):
        values = -np.cumsum(rng.integers(0, 3, (9 * k, k + 1)), axis=1).astype(np.float32) / 4
        values[:, 1:] -= 2
        indices = rng.permuted(np.tile(np.arange(2 * k + 2, dtype=np.int32), (9 * k, 1)), axis=1)[:, : k + 1].copy()
        indices[indices == END] = 2 * k + 2
        indices[: 5 * k, 0] = END  # the first images' beams like to end
        for function, given in ((kernels.beam_select, mine), (reference.beam_select, plain)):
            function(*given[:8], values, indices, given[10], END)
        for ours, theirs in zip(mine[:8], plain[:8], strict=True):
            assert ours.tobytes() == theirs.tobytes()
    assert 0 < mine[4].sum() < 9 and mine[3].max() == most


@pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.triton), pytest.param("cuda", marks=pytest.mark.gpu)]
)
def test_a_models_searches_one_after_another_are_the_hosts(device, caplog):
    """On a GPU the first is launched and captured, and those after it are replayed."""
    rules, searches = Rules(3, 7, 1, END, (0, 1), 0.7), Searches()
    with backends.use("triton", device):
        model = small_nic()
        model.train(False)
        for first in range(3):
            images = Tensor(to_device(batch(images=first + 2)[0].data[first:].copy()))
            found, expected = device_beam_search(model, images, rules, searches), host_beam_search(model, images, rules)
            for ours, theirs in zip(found, expected, strict=True):
                assert [h.ids for h in ours] == [h.ids for h in theirs]
                assert [h.logprob for h in ours] == pytest.approx([h.logprob for h in theirs], abs=1e-4)
    assert not [
        r for r in caplog.records if r.name.startswith("pycap.decode")
    ]  # a step that cannot be captured is told


def test_what_it_takes_is_what_the_search_asks_of_it(inside):
    assert inside.MOST_BEAMS == decode.MOST_BEAMS


@pytest.mark.parametrize(
    ("k", "wide", "said"),
    [
        (17, 3, r"17 beams with 3 words each; it takes at most 16"),
        (3, 5, r"3 beams with 5 words each; it takes at most 16, with 1 to 4"),
    ],
)
def test_more_candidates_than_a_program_holds_are_refused(inside, k, wide, said):
    with pytest.raises(ValueError, match=said):
        inside.beam_select(*arguments(2, k, wide))


NAMES = (
    "words",
    "parents",
    "scores",
    "steps",
    "done",
    "finished",
    "origins",
    "history",
    "values",
    "indices",
    "penalties",
)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "history"])
def test_arrays_of_other_shapes_are_refused(inside, name):
    """The scores say how many images and beams there are, the history how many steps, the values how many words."""
    given = arguments()
    position = NAMES.index(name)
    given[position] = np.ascontiguousarray(given[position][:-1])
    with pytest.raises(ValueError, match="beam_select: "):
        inside.beam_select(*given)


@pytest.mark.parametrize("position", range(len(NAMES)), ids=NAMES)
def test_strided_arrays_and_other_types_are_refused(inside, position):
    given = arguments()
    whole = given[position]
    wide = np.repeat(whole, 2, axis=-1)
    for other, error, said in (
        (wide[..., ::2], ValueError, f"beam.select: {NAMES[position]} must be C-contiguous"),
        (whole.astype(np.float16), TypeError, f"beam.select: {NAMES[position]} must be"),
    ):
        given[position] = other
        with pytest.raises(error, match=said):
            inside.beam_select(*given)
