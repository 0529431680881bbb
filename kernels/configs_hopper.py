"""The tensor maps and the box and buffer sizes of the kernels in conv2d_hopper.py: data only.

`TENSOR_MAPS[kernel][argument]` is (how the array is seen, the block of one TMA transfer, its element's size in bytes).
"HNWC": the NHWC array as [H,N,W,C]; "matrix": w [K,3,3,C] as [K, 9*C]. A block's sizes are numbers or the names of a row's
sizes ("BH//2" and "BW//2" being halves). The layout of all is ``NVMMASharedLayout.get_default_for(block, dtype)``.

`ROWS` holds, for a kernel and a layer's size (output height, C, K), the constexprs and ``num_warps``; RELU and which optional
arguments are None is the caller's. A layer that is not in the list takes the row of its kernel with the next larger size
whose boxes waste the least, and a row without RESIDENT. Sizes are chosen by shared memory (232,448 bytes a program) and by
bytes moved for each product (docs/math/conv2d.md, "On Hopper"); none has been timed yet.
"""

_PIXELS = ("HNWC", ("BH", "IMG", "BW", 64), 2)
_HALO = ("HNWC", (2, "IMG", "BW", 64), 2)

TENSOR_MAPS = {
    "forward": {"y": _PIXELS, "x": _PIXELS, "halo": _HALO, "w": ("matrix", ("BN", 64), 2)},
    "forward_pool": {
        "y": ("HNWC", ("BH//2", "IMG", "BW//2", 64), 2),
        "argmax": ("HNWC", ("BH//2", "IMG", "BW//2", 16), 1),
        "x": _PIXELS,
        "halo": _HALO,
        "w": ("matrix", ("BN", 64), 2),
    },
    "backward_data": {"dx": _PIXELS, "dy": _PIXELS, "halo": _HALO, "w": ("matrix", (64, "BN"), 2), "x": _PIXELS},
    "backward_weight": {"x": _PIXELS, "halo": _HALO, "dy": ("HNWC", ("BH", "IMG", "BW", "BN"), 2)},
}

_224 = {"IMG": 1, "BH": 16, "BW": 8, "BN": 64, "NB": 9, "OUT": 1, "RESIDENT": True, "num_warps": 4}
_112 = {"IMG": 1, "BH": 16, "BW": 8, "BN": 128, "NB": 4, "OUT": 1, "RESIDENT": False, "num_warps": 4}
_112_64 = {"IMG": 1, "BH": 16, "BW": 8, "BN": 64, "NB": 8, "OUT": 1, "RESIDENT": False, "num_warps": 4}
_56 = {"IMG": 2, "BH": 8, "BW": 8, "BN": 128, "NB": 4, "OUT": 1, "RESIDENT": False, "num_warps": 4}
_28 = {"IMG": 8, "BH": 4, "BW": 4, "BN": 128, "NB": 3, "OUT": 1, "RESIDENT": False, "num_warps": 4}
_28_POOL = {"IMG": 4, "BH": 4, "BW": 4, "BN": 256, "NB": 4, "OUT": 1, "RESIDENT": False, "num_warps": 4}
_14 = {"IMG": 16, "BH": 2, "BW": 2, "BN": 256, "NB": 3, "OUT": 1, "RESIDENT": False, "num_warps": 4}

ROWS = {
    ("forward", 224, 64, 64): _224,
    ("forward", 112, 64, 128): _112,
    ("forward", 112, 128, 128): _112,
    ("forward", 56, 128, 256): _56,
    ("forward", 56, 256, 256): _56,
    ("forward", 28, 256, 512): _28,
    ("forward", 28, 512, 512): _28,
    ("forward", 14, 512, 512): _14,
    ("forward_pool", 224, 64, 64): _224,
    ("forward_pool", 112, 128, 128): _112,
    ("forward_pool", 56, 256, 256): _56,
    ("forward_pool", 28, 512, 512): _28_POOL,
    ("forward_pool", 14, 512, 512): _14,
    ("backward_data", 224, 64, 64): _224,
    ("backward_data", 112, 64, 128): _112_64,
    ("backward_data", 112, 128, 128): _112,
    ("backward_data", 56, 128, 256): _56,
    ("backward_data", 56, 256, 256): _56,
    ("backward_data", 28, 256, 512): _28,
    ("backward_data", 28, 512, 512): _28,
    ("backward_data", 14, 512, 512): _14,
    ("backward_weight", 224, 64, 64): {
        "BY_PIXELS": True, "IMG": 1, "BH": 16, "BW": 8, "BN": 64, "NB": 3, "num_warps": 4,
    },
    ("backward_weight", 112, 64, 128): {
        "BY_PIXELS": True, "IMG": 1, "BH": 8, "BW": 8, "BN": 128, "NB": 4, "num_warps": 4,
    },
    ("backward_weight", 112, 128, 128): {
        "BY_PIXELS": False, "IMG": 1, "BH": 8, "BW": 8, "BN": 128, "NB": 5, "num_warps": 4,
    },
    ("backward_weight", 56, 128, 256): {
        "BY_PIXELS": False, "IMG": 1, "BH": 8, "BW": 8, "BN": 128, "NB": 5, "num_warps": 4,
    },
    ("backward_weight", 56, 256, 256): {
        "BY_PIXELS": False, "IMG": 1, "BH": 8, "BW": 8, "BN": 128, "NB": 5, "num_warps": 4,
    },
    ("backward_weight", 28, 256, 512): {
        "BY_PIXELS": False, "IMG": 4, "BH": 4, "BW": 4, "BN": 128, "NB": 5, "num_warps": 4,
    },
    ("backward_weight", 28, 512, 512): {
        "BY_PIXELS": False, "IMG": 4, "BH": 4, "BW": 4, "BN": 128, "NB": 5, "num_warps": 4,
    },
    ("backward_weight", 14, 512, 512): {
        "BY_PIXELS": False, "IMG": 16, "BH": 2, "BW": 2, "BN": 128, "NB": 4, "num_warps": 4,
    },
}  # fmt: skip
