"""The configuration table: block sizes of every kernel, by architecture. Data; what `python -m benchmarks.tune` measured
on a GPU stands in tuned.json and replaces the rows here.

Rows are tried in order; the first that is for the type and the sizes serves (`_rows.Row`). "sm_80" rows serve every
sm_8x and, where there are no others, newer architectures too; "interpreter" rows are small, so that small arrays
have several tiles and edges.
"""

from ._rows import Row, Table, tuned

_HALF = ("bf16", "fp16")


def _held(types: str, hidden: int, n: int, h: int, k: int, chunks: int, warps: int) -> Row:
    """A row of the persistent LSTM, for up to so many hidden units, on arrays at multiples of 16 bytes."""
    return Row(
        {"BLOCK_N": n, "BLOCK_H": h, "BLOCK_K": k, "CHUNKS": chunks}, warps, 1,
        _HALF if types == "half" else (types,), {"hidden": hidden, "odd": 0},
    )  # fmt: skip


def _tile(
    m: int, n: int, deep: int, warps: int, stages: int, types: tuple[str, ...] = (), *,
    FLAT: bool | None = None, STRIDED: bool | None = None, **upto: int,
) -> Row:  # fmt: skip
    """A row of the convolutions: tiles of m by n, so deep at a time."""
    flags = {name: value for name, value in (("FLAT", FLAT), ("STRIDED", STRIDED)) if value is not None}
    return Row({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": deep, **flags}, warps, stages, types, upto)


def _box(
    images: int, high: int, wide: int, n: int, held: int, *, resident: bool = False, by_pixels: bool | None = None,
    **upto: int,
) -> Row:  # fmt: skip
    """A row of the Hopper convolutions: boxes of images x high x wide pixels, n channels, so many taps or boxes held."""
    flags: dict[str, int | bool | str] = {"OUT": 1, "RESIDENT": resident}
    if by_pixels is not None:
        flags = {"BY_PIXELS": by_pixels}
    return Row({"IMG": images, "BH": high, "BW": wide, "BN": n, "NB": held, **flags}, 4, 1, _HALF, upto)


#: Forward, with pooling or without: boxes that tile VGG's maps; at 64 channels all weights stay in shared memory.
_HOPPER_FORWARD = (
    _box(1, 16, 8, 64, 9, resident=True, c=64, k=64),
    _box(16, 2, 2, 256, 3, h=14),
    _box(8, 4, 4, 128, 3, h=28),
    _box(2, 8, 8, 128, 4, h=56),
    _box(1, 16, 8, 128, 4),
)

ROWS: Table = {
    # -- cast
    "cast.forward": {
        "interpreter": (Row({"BLOCK": 64}),),
        "sm_80": (Row({"BLOCK": 1024}, warps=4, stages=1),),
    },
    # -- dropout
    "dropout.forward": {
        "interpreter": (Row({"BLOCK": 2048}),),
        "sm_80": (Row({"BLOCK": 1024}, warps=4, stages=1),),
    },
    # -- embedding: rows of 256 to 512 numbers in one block
    "embedding.forward": {
        "interpreter": (Row({"BLOCK_M": 8, "BLOCK_E": 32}),),
        "sm_80": (
            Row({"BLOCK_M": 4, "BLOCK_E": 256}, warps=4, stages=1, upto={"e": 256}),
            Row({"BLOCK_M": 4, "BLOCK_E": 512}, warps=4, stages=1),
        ),
    },
    "embedding.clear": {
        "interpreter": (Row({"BLOCK_E": 256}),),
        "sm_80": (Row({"BLOCK_E": 512}, warps=4, stages=1),),
    },
    "embedding.backward": {
        "interpreter": (Row({"SCAN": 32, "BLOCK_M": 16, "BLOCK_E": 256}),),
        "sm_80": (Row({"SCAN": 1024, "BLOCK_M": 32, "BLOCK_E": 256}, warps=4, stages=1),),
    },
    # -- linear: up to BLOCK_M rows, the weights are read once; tiles of 128 x 128 leave room for two programs on an H200's
    # multiprocessor, so that one computes while the other begins or ends
    "linear.forward": {
        "interpreter": (Row({"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16}),),
        "sm_80": (
            Row({"BLOCK_M": 32, "BLOCK_N": 64, "BLOCK_K": 32}, warps=4, stages=4, types=("fp32",), upto={"m": 32}),
            Row({"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 32}, warps=8, stages=4, types=("fp32",)),
            Row(
                {"BLOCK_M": 32, "BLOCK_N": 64, "BLOCK_K": 64}, warps=4, stages=4, types=_HALF, upto={"m": 32, "odd": 0}
            ),
            Row(
                {"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 64}, warps=4, stages=4, types=_HALF, upto={"m": 64, "odd": 0}
            ),
            Row({"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64}, warps=8, stages=3, types=_HALF, upto={"odd": 0}),
            Row({"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 32}, warps=8, stages=3, types=_HALF),
        ),
        "sm_90": (
            Row({"BLOCK_M": 32, "BLOCK_N": 64, "BLOCK_K": 32}, warps=4, stages=4, types=("fp32",), upto={"m": 32}),
            Row({"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 32}, warps=8, stages=4, types=("fp32",), upto={"m": 64}),
            Row({"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 32}, warps=8, stages=4, types=("fp32",), upto={"odd": 0}),
            Row({"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 32}, warps=8, stages=4, types=("fp32",)),
            Row(
                {"BLOCK_M": 32, "BLOCK_N": 64, "BLOCK_K": 64}, warps=4, stages=4, types=_HALF, upto={"m": 32, "odd": 0}
            ),
            Row(
                {"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 64}, warps=4, stages=4, types=_HALF, upto={"m": 64, "odd": 0}
            ),
            Row({"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64}, warps=8, stages=3, types=_HALF, upto={"odd": 0}),
            Row({"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 32}, warps=8, stages=3, types=_HALF),
        ),
    },
    "linear.forward_wide": {
        "interpreter": (Row({"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16}),),
        "sm_80": (
            Row({"BLOCK_M": 32, "BLOCK_N": 64, "BLOCK_K": 64}, warps=4, stages=4, upto={"m": 32, "odd": 0}),
            Row({"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 32}, warps=4, stages=4, upto={"m": 64, "odd": 0}),
            Row({"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 32}, warps=8, stages=4, upto={"odd": 0}),
            Row({"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 32}, warps=8, stages=3),
        ),
    },
    "linear.backward_data": {
        "interpreter": (Row({"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16}),),
        "sm_80": (
            Row({"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 32}, warps=8, stages=4, types=("fp32",)),
            Row(
                {"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 64}, warps=4, stages=4, types=_HALF, upto={"m": 64, "odd": 0}
            ),
            Row({"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64}, warps=8, stages=3, types=_HALF, upto={"odd": 0}),
            Row({"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 32}, warps=8, stages=3, types=_HALF),
        ),
        "sm_90": (
            Row({"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 32}, warps=8, stages=4, types=("fp32",), upto={"m": 64}),
            Row({"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 32}, warps=8, stages=4, types=("fp32",), upto={"odd": 0}),
            Row({"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 32}, warps=8, stages=4, types=("fp32",)),
            Row(
                {"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 64}, warps=4, stages=4, types=_HALF, upto={"m": 64, "odd": 0}
            ),
            Row({"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64}, warps=8, stages=3, types=_HALF, upto={"odd": 0}),
            Row({"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 32}, warps=8, stages=3, types=_HALF),
        ),
    },
    "linear.backward_data_wide": {
        "interpreter": (Row({"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16}),),
        "sm_80": (
            Row({"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 32}, warps=4, stages=4, upto={"m": 64, "odd": 0}),
            Row({"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 32}, warps=8, stages=4, upto={"odd": 0}),
            Row({"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 32}, warps=8, stages=3),
        ),
    },
    "linear.backward_weight": {
        "interpreter": (Row({"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16}),),
        "sm_80": (
            Row({"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 32}, warps=8, stages=3, types=("fp32",), upto={"odd": 0}),
            Row({"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 16}, warps=8, stages=3, types=("fp32",)),
            Row({"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 32}, warps=8, stages=4, types=_HALF, upto={"odd": 0}),
            Row({"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 32}, warps=8, stages=3, types=_HALF),
        ),
        "sm_90": (
            Row({"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 32}, warps=8, stages=4, types=("fp32",), upto={"odd": 0}),
            Row({"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 16}, warps=8, stages=3, types=("fp32",)),
            Row({"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64}, warps=8, stages=3, types=_HALF, upto={"odd": 0}),
            Row({"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 32}, warps=8, stages=3, types=_HALF),
        ),
    },
    "linear.finish": {
        "interpreter": (Row({"BLOCK": 64}),),
        "sm_80": (Row({"BLOCK": 512}, warps=4, stages=1),),
    },
    # -- lstm: a step is small, so that the tiles make about one program for each of an H200's 132 multiprocessors at
    # H = 512; decoding a few sequences reads the weights once, in as many programs. tf32x3 is three products into one sum,
    # for which Triton sets all warps along BLOCK_N: with 16 rows a warp none repeats another's work.
    "lstm.cell_forward": {
        "interpreter": (Row({"BLOCK_N": 32, "BLOCK_H": 32, "BLOCK_K": 32}),),
        "sm_80": (
            Row({"BLOCK_N": 16, "BLOCK_H": 4, "BLOCK_K": 64}, warps=4, stages=4, upto={"n": 16, "odd": 0}),
            Row({"BLOCK_N": 64, "BLOCK_H": 4, "BLOCK_K": 32}, warps=4, stages=5, upto={"n": 64, "odd": 0}),
            Row({"BLOCK_N": 64, "BLOCK_H": 16, "BLOCK_K": 32}, warps=4, stages=4, upto={"odd": 0}),
            Row({"BLOCK_N": 32, "BLOCK_H": 8, "BLOCK_K": 16}, warps=4, stages=4),
        ),
    },
    "lstm.cell_backward": {
        "interpreter": (Row({"BLOCK_N": 32, "BLOCK_H": 32, "BLOCK_K": 128}),),
        "sm_80": (
            Row({"BLOCK_N": 16, "BLOCK_H": 16, "BLOCK_K": 64}, warps=2, stages=4, upto={"n": 16, "odd": 0}),
            Row({"BLOCK_N": 32, "BLOCK_H": 16, "BLOCK_K": 32}, warps=4, stages=4, upto={"n": 64, "odd": 0}),
            Row({"BLOCK_N": 64, "BLOCK_H": 16, "BLOCK_K": 32}, warps=4, stages=4, upto={"odd": 0}),
            Row({"BLOCK_N": 32, "BLOCK_H": 16, "BLOCK_K": 16}, warps=4, stages=4),
        ),
    },
    "lstm.backward_weight": {
        "interpreter": (Row({"BLOCK_G": 128, "BLOCK_I": 32, "BLOCK_M": 64}),),
        "sm_80": (
            Row({"BLOCK_G": 64, "BLOCK_I": 64, "BLOCK_M": 32}, warps=4, stages=3, upto={"g": 1024, "odd": 0}),
            Row({"BLOCK_G": 128, "BLOCK_I": 64, "BLOCK_M": 32}, warps=8, stages=3, upto={"odd": 0}),
            Row({"BLOCK_G": 64, "BLOCK_I": 64, "BLOCK_M": 32}, warps=8, stages=3),
        ),
    },
    "lstm.backward_bias": {
        "interpreter": (Row({"BLOCK_G": 128, "BLOCK_M": 64}),),
        "sm_80": (Row({"BLOCK_G": 16, "BLOCK_M": 64}, warps=4, stages=1),),
    },
    # Which form of a sequence serves, where it can, forward and backward: "step" (a launch a step) or "persistent" (one
    # launch) of Triton, "cooperative" or "cluster" (one launch, the latter on sm_90) of csrc/cuda; sizes: hidden, and n, the
    # batch. Which form of a single step: "portable" or "cuda". What has not been measured on an architecture is not
    # preferred there.
    "lstm.form": {"interpreter": (Row({"FORM": "step"}),), "sm_80": (Row({"FORM": "step"}),)},
    "lstm_cell.form": {"interpreter": (Row({"FORM": "portable"}),), "sm_80": (Row({"FORM": "portable"}),)},
    # The weights of 4 * BLOCK_H columns lie in shared memory: 64 KB, and twice that for both parts of tf32x3.
    "lstm_persistent.forward": {
        "interpreter": (Row({"BLOCK_N": 16, "BLOCK_H": 64, "BLOCK_K": 32, "CHUNKS": 2}),),
        "sm_80": (
            _held("fp32", 256, 32, 8, 64, 4, warps=8),
            _held("half", 512, 64, 16, 128, 4, warps=8),
        ),
        "sm_90": (
            _held("fp32", 256, 32, 8, 64, 4, warps=8),
            _held("fp32", 512, 32, 8, 64, 8, warps=8),
            _held("half", 256, 64, 16, 256, 1, warps=8),
            _held("half", 512, 64, 16, 512, 1, warps=8),
        ),
    },
    "lstm_persistent.backward": {
        "interpreter": (Row({"BLOCK_N": 16, "BLOCK_H": 64, "BLOCK_K": 128, "CHUNKS": 2}),),
        "sm_80": (
            _held("fp32", 256, 32, 8, 32, 32, warps=4),
            _held("half", 512, 32, 16, 128, 16, warps=8),
        ),
        "sm_90": (
            _held("fp32", 256, 32, 8, 32, 32, warps=4),
            _held("half", 512, 32, 16, 512, 4, warps=8),
        ),
    },
    # -- softmax_xent
    "softmax_xent.logits": {
        "interpreter": (Row({"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16}),),
        "sm_80": (
            Row({"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 32}, warps=8, stages=4, types=("fp32",)),
            Row({"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64}, warps=8, stages=3, types=_HALF, upto={"odd": 0}),
            Row({"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 32}, warps=8, stages=3, types=_HALF),
        ),
        "sm_90": (
            Row({"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 32}, warps=8, stages=4, types=("fp32",), upto={"odd": 0}),
            Row({"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 32}, warps=8, stages=4, types=("fp32",)),
            Row({"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64}, warps=8, stages=3, types=_HALF, upto={"odd": 0}),
            Row({"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 32}, warps=8, stages=3, types=_HALF),
        ),
    },
    "softmax_xent.forward": {
        "interpreter": (Row({"TILES": 8, "BLOCK": 64}),),
        "sm_80": (Row({"TILES": 128, "BLOCK": 2048}, warps=4, stages=1),),
    },
    # -- topk
    "topk.forward": {
        "interpreter": (Row({"BLOCK": 64}),),
        "sm_80": (Row({"BLOCK": 4096}, warps=8, stages=1),),
    },
    # -- beam: candidates are at most k * (k + 1)
    "beam.select": {
        "interpreter": (
            Row({"BLOCK": 16, "CHUNK": 8, "BEAMS": 4}, upto={"k": 3}),
            Row({"BLOCK": 512, "CHUNK": 64, "BEAMS": 16}),
        ),
        "sm_80": (
            Row({"BLOCK": 16, "CHUNK": 16, "BEAMS": 4}, warps=1, stages=1, upto={"k": 3}),
            Row({"BLOCK": 32, "CHUNK": 16, "BEAMS": 8}, warps=2, stages=1, upto={"k": 5}),
            Row({"BLOCK": 128, "CHUNK": 16, "BEAMS": 16}, warps=4, stages=1, upto={"k": 10}),
            Row({"BLOCK": 512, "CHUNK": 16, "BEAMS": 16}, warps=8, stages=1),
        ),
    },
    # -- optim
    "optim.sgd": {
        "interpreter": (Row({"BLOCK": 1024}),),
        "sm_80": (Row({"BLOCK": 1024}, warps=4, stages=1),),
    },
    "optim.rmsprop": {
        "interpreter": (Row({"BLOCK": 1024}),),
        "sm_80": (Row({"BLOCK": 1024}, warps=4, stages=1),),
    },
    "optim.adam": {
        "interpreter": (Row({"BLOCK": 1024}),),
        "sm_80": (Row({"BLOCK": 1024}, warps=4, stages=1),),
    },
    "optim.sum_squares": {
        "interpreter": (Row({"CHUNK": 16384, "BLOCK": 4096}),),
        "sm_80": (Row({"CHUNK": 16384, "BLOCK": 1024}, warps=4, stages=1),),
    },
    "optim.total": {
        "interpreter": (Row({"BLOCK": 16}),),
        "sm_80": (Row({"BLOCK": 1024}, warps=4, stages=1),),
    },
    "optim.clip_factors": {
        "interpreter": (Row({"BLOCK": 4}),),
        "sm_80": (Row({"BLOCK": 32}, warps=1, stages=1),),
    },
    # -- conv2d: FLAT for few channels, where the sum over taps and channels runs as one index
    "conv2d.forward": {
        "interpreter": (_tile(256, 32, 64, 4, 3, FLAT=True, c=15), _tile(256, 32, 64, 4, 3, FLAT=False)),
        "sm_80": (
            _tile(64, 64, 32, 8, 2, FLAT=True, c=15),
            _tile(128, 64, 32, 8, 3, ("fp32",), FLAT=False, odd=0),
            _tile(128, 64, 64, 8, 3, _HALF, FLAT=False, odd=0, k=64),
            _tile(128, 128, 64, 8, 3, _HALF, FLAT=False, odd=0),
            _tile(64, 64, 32, 8, 2, FLAT=False),
        ),
        "sm_90": (
            _tile(64, 64, 32, 8, 2, FLAT=True, c=15),
            _tile(128, 64, 32, 8, 3, ("fp32",), FLAT=False, odd=0, k=64),
            _tile(128, 128, 32, 8, 3, ("fp32",), FLAT=False, odd=0),
            _tile(256, 64, 64, 8, 4, _HALF, FLAT=False, odd=0, k=64),
            _tile(256, 128, 64, 8, 4, _HALF, FLAT=False, odd=0, k=128),
            _tile(128, 256, 64, 8, 4, _HALF, FLAT=False, odd=0),
            _tile(64, 64, 32, 8, 2, FLAT=False),
        ),
    },
    "conv2d.forward_pool": {
        "interpreter": (_tile(256, 32, 64, 4, 3, FLAT=True, c=15), _tile(256, 32, 64, 4, 3, FLAT=False)),
        "sm_80": (
            _tile(64, 64, 32, 8, 2, FLAT=True, c=15),
            _tile(128, 64, 32, 8, 3, ("fp32",), FLAT=False, odd=0),
            _tile(128, 64, 64, 8, 3, _HALF, FLAT=False, odd=0, k=64),
            _tile(128, 128, 64, 8, 3, _HALF, FLAT=False, odd=0),
            _tile(64, 64, 32, 8, 2, FLAT=False),
        ),
        "sm_90": (
            _tile(64, 64, 32, 8, 2, FLAT=True, c=15),
            _tile(128, 64, 32, 8, 3, ("fp32",), FLAT=False, odd=0, k=64),
            _tile(128, 128, 32, 8, 3, ("fp32",), FLAT=False, odd=0),
            _tile(256, 64, 64, 8, 4, _HALF, FLAT=False, odd=0, k=64),
            _tile(256, 128, 64, 8, 4, _HALF, FLAT=False, odd=0),
            _tile(64, 64, 32, 8, 2, FLAT=False),
        ),
    },
    "conv2d.backward_data": {
        "interpreter": (
            _tile(256, 32, 64, 4, 3, STRIDED=False, stride=1),
            _tile(256, 32, 64, 4, 3, STRIDED=True),
        ),
        "sm_80": (
            _tile(128, 64, 32, 8, 3, ("fp32",), STRIDED=False, odd=0, stride=1),
            _tile(128, 64, 64, 4, 3, _HALF, STRIDED=False, odd=0, stride=1, c=64),
            _tile(128, 128, 64, 8, 3, _HALF, STRIDED=False, odd=0, stride=1),
            _tile(64, 64, 32, 8, 2, STRIDED=False, stride=1),
            _tile(64, 64, 32, 8, 2, STRIDED=True),
        ),
        "sm_90": (
            _tile(128, 64, 32, 8, 3, ("fp32",), STRIDED=False, odd=0, stride=1, c=64),
            _tile(128, 128, 32, 8, 3, ("fp32",), STRIDED=False, odd=0, stride=1),
            _tile(256, 64, 64, 8, 4, _HALF, STRIDED=False, odd=0, stride=1, c=64),
            _tile(256, 128, 64, 8, 4, _HALF, STRIDED=False, odd=0, stride=1),
            _tile(64, 64, 32, 8, 2, STRIDED=False, stride=1),
            _tile(64, 64, 32, 8, 2, STRIDED=True),
        ),
    },
    "conv2d.backward_weight": {
        "interpreter": (_tile(64, 64, 512, 4, 3, FLAT=True, c=16), _tile(64, 64, 512, 4, 3, FLAT=False)),
        "sm_80": (
            _tile(64, 32, 32, 8, 2, FLAT=True, c=15),
            _tile(64, 64, 32, 4, 3, ("fp32",), FLAT=False, odd=0),
            _tile(64, 64, 64, 4, 4, _HALF, FLAT=False, odd=0, c=64),
            _tile(128, 128, 64, 8, 3, _HALF, FLAT=False, odd=0),
            _tile(64, 32, 32, 8, 2, FLAT=False),
        ),
        "sm_90": (
            _tile(64, 32, 32, 8, 2, FLAT=True, c=15),
            _tile(64, 64, 32, 4, 3, ("fp32",), FLAT=False, odd=0, c=64),
            _tile(128, 128, 32, 8, 3, ("fp32",), FLAT=False, odd=0),
            _tile(64, 128, 64, 4, 4, _HALF, FLAT=True, odd=0, c=64),  # dz is read for two taps at once
            _tile(128, 128, 64, 8, 4, _HALF, FLAT=False, odd=0),
            _tile(64, 32, 32, 8, 2, FLAT=False),
        ),
    },
    "conv2d.backward_bias": {
        "interpreter": (Row({"BLOCK_M": 256, "BLOCK_N": 32}),),
        "sm_80": (Row({"BLOCK_M": 64, "BLOCK_N": 64}, warps=8, stages=3),),
    },
    "conv2d.reduce_partials": {
        "interpreter": (Row({"BLOCK_M": 2, "BLOCK_N": 1024}),),
        "sm_80": (
            Row({"BLOCK_M": 4, "BLOCK_N": 512}, warps=4, stages=2, upto={"splits": 16}),
            Row({"BLOCK_M": 64, "BLOCK_N": 32}, warps=4, stages=2),
        ),
    },
    # Which form of convolutions serves, where it can: "portable" (conv2d.py), "hopper" (conv2d_hopper.py) or "cuda"
    # (csrc/cuda). What has not been measured on an architecture is not preferred there.
    "conv2d.form": {"interpreter": (Row({"FORM": "portable"}),), "sm_80": (Row({"FORM": "portable"}),)},
    "conv2d_hopper.forward": {"interpreter": (_box(1, 8, 8, 64, 3),), "sm_90": _HOPPER_FORWARD},
    "conv2d_hopper.forward_pool": {
        "interpreter": (_box(1, 8, 8, 64, 3),),
        "sm_90": (*_HOPPER_FORWARD[:2], _box(4, 4, 4, 256, 4, h=28), *_HOPPER_FORWARD[3:]),
    },
    "conv2d_hopper.backward_data": {
        "interpreter": (_box(1, 8, 8, 64, 3),),
        "sm_90": (_HOPPER_FORWARD[0], _box(1, 16, 8, 64, 8, c=64), *_HOPPER_FORWARD[1:]),
    },
    "conv2d_hopper_weight.backward_weight": {
        "interpreter": (_box(1, 8, 8, 64, 2, by_pixels=True, c=64), _box(1, 8, 8, 64, 2, by_pixels=False)),
        "sm_90": (
            _box(1, 16, 8, 64, 3, by_pixels=True, c=64, k=64),
            _box(1, 8, 8, 128, 4, by_pixels=True, c=64),
            _box(16, 2, 2, 128, 4, by_pixels=False, h=14),
            _box(4, 4, 4, 128, 5, by_pixels=False, h=28),
            _box(1, 8, 8, 128, 5, by_pixels=False),
        ),
    },
    # -- pool
    "pool.forward": {
        "interpreter": (Row({"BLOCK_M": 32, "BLOCK_N": 16}),),
        "sm_80": (Row({"BLOCK_M": 32, "BLOCK_N": 64}, warps=4, stages=1),),
    },
    "pool.backward": {
        "interpreter": (Row({"BLOCK_M": 64, "BLOCK_N": 16}),),
        "sm_80": (Row({"BLOCK_M": 32, "BLOCK_N": 64}, warps=4, stages=1),),
    },
    # -- preprocess
    "preprocess.forward": {
        "interpreter": (Row({"BLOCK": 512}),),
        "sm_80": (Row({"BLOCK": 1024}, warps=4, stages=1),),
    },
    # -- conv2d_first: 27 products a number, in one step
    "conv2d_first.forward": {
        "interpreter": (Row({"BLOCK_M": 64, "BLOCK_N": 16}),),
        "sm_80": (
            Row({"BLOCK_M": 64, "BLOCK_N": 64}, warps=4, stages=1, types=("fp32",)),
            Row({"BLOCK_M": 64, "BLOCK_N": 64}, warps=4, stages=1, types=_HALF),
        ),
    },
    "conv2d_first.backward_weight": {
        "interpreter": (Row({"BLOCK_M": 16, "BLOCK_K": 64}),),
        "sm_80": (
            Row({"BLOCK_M": 64, "BLOCK_K": 32}, warps=8, stages=1, types=("fp32",)),
            Row({"BLOCK_M": 64, "BLOCK_K": 64}, warps=8, stages=1, types=_HALF),
        ),
    },
}

for _kernel, _rows in tuned().items():
    ROWS[_kernel] = {**ROWS[_kernel], **_rows}
