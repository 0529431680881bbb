"""The configuration table: block sizes of every kernel, by architecture. Data; what `python -m benchmarks.tune` measured
on a GPU stands in tuned.json and replaces the rows here.

Rows are tried in order; the first that is for the type and the sizes serves (`_rows.Row`). "sm_80" rows serve every
sm_8x and, where there are no others, newer architectures too; "interpreter" rows are small, so that small arrays
have several tiles and edges.
"""

from ._rows import Row, Table, tuned

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
}

for _kernel, _rows in tuned().items():
    ROWS[_kernel] = {**ROWS[_kernel], **_rows}
