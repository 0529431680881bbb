"""The configuration table: block sizes of every kernel, by architecture. Data: `python -m benchmarks.tune` writes it.

Rows are tried in order; the first that is for the type and the sizes serves (`_rows.Row`). "sm_80" rows serve every
sm_8x and, where there are no others, newer architectures too; "interpreter" rows are small, so that small arrays
have several tiles and edges.
"""

from ._rows import Row, Table

ROWS: Table = {
    # -- cast
    "cast.forward": {
        "interpreter": (Row({"BLOCK": 64}),),
        "sm_80": (Row({"BLOCK": 1024}, warps=4, stages=1),),
    },
}
