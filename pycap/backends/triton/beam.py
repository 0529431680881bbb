"""A step of beam search in the Triton backend."""

from __future__ import annotations

from pycap.backends.triton.launching import Array, Kernel, expect, row

MOST_BEAMS = 16  # a program holds an image's k * (k + 1) candidates

_select = Kernel(
    "beam.select",
    "words:*i32 parents:*i32 scores:*fp64 steps:*i32 done:*u8 finished:*fp64 origins:*i32 history:*i32 values:*fp32 "
    "indices:*i32 penalties:*fp64 k:i32 wide:i32 most:i32 end:i32",
)


def beam_select(
    words: Array, parents: Array, scores: Array, steps: Array, done: Array, finished: Array, origins: Array, history: Array,
    values: Array, indices: Array, penalties: Array, end: int,
) -> None:  # fmt: skip
    (n, k), wide, most = scores.shape, values.shape[1], history.shape[1]
    rows, each = (n * k,), (2, n, k)
    expect("beam_select", words=(words, rows), parents=(parents, rows), steps=(steps, (n,)), done=(done, (n,)))
    expect("beam_select", finished=(finished, each), origins=(origins, each), history=(history, (2, most, n, k)))
    expect("beam_select", values=(values, (n * k, wide)), indices=(indices, (n * k, wide)))
    expect("beam_select", penalties=(penalties, (most + 1,)))
    if k > MOST_BEAMS or not 1 <= wide <= k + 1:
        raise ValueError(
            f"beam_select: {k} beams with {wide} words each; it takes at most {MOST_BEAMS}, with 1 to {k + 1} words each"
        )
    _select(
        (n, 1, 1), row(_select, scores, k=k), words, parents, scores, steps, done, finished, origins, history, values,
        indices, penalties, k, wide, most, end,
    )  # fmt: skip
