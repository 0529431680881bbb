"""How kernels are launched: packing, specialisation, the driver's calls, the store of machine code; no GPU is needed."""

from __future__ import annotations

import ctypes
import json
import struct
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from pycap.backends.triton import launching

pytestmark = pytest.mark.triton
_launch, _rows = launching.kernel_module("_launch"), launching.kernel_module("_rows")
_compile, _driver, _store = (launching.kernel_module(name) for name in ("_compile", "_driver", "_store"))
Row = _rows.Row


class Record(ctypes.Structure):
    """What recording_driver.cpp remembers of the last launch."""

    _fields_ = [
        ("launches", ctypes.c_uint32), ("grid", ctypes.c_uint32 * 3), ("block", ctypes.c_uint32 * 3),
        ("shared", ctypes.c_uint32), ("function", ctypes.c_uint64), ("stream", ctypes.c_uint64),
        ("parameter_bytes", ctypes.c_uint64), ("cooperative", ctypes.c_int32), ("shared_allowed", ctypes.c_int32),
        ("symbol", ctypes.c_char * 64), ("parameters", ctypes.c_ubyte * 4096),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp("driver") / "recording_driver.so"
    source = Path(__file__).with_name("recording_driver.cpp")
    subprocess.run(["g++", "-shared", "-fPIC", "-O1", "-o", path, source], check=True)
    library = ctypes.CDLL(str(path))
    library.Last.restype = ctypes.POINTER(Record)
    return library


class Array:
    """As much of a CuPy array as a launch looks at."""

    def __init__(self, pointer, dtype=np.float32, contiguous=True):
        self.data, self.dtype = SimpleNamespace(ptr=pointer), np.dtype(dtype)
        self.flags = SimpleNamespace(c_contiguous=contiguous)


@pytest.fixture
def machine(library, monkeypatch, tmp_path):
    """A machine with an sm_90 whose driver is the recording one; nothing prebuilt, an empty cache, no compiler."""
    built = []

    def compile(variant, arch):
        built.append((variant, arch))
        return _compile.Compiled(b"code", "kernel", 50000, 128, 2, variant.kernel.cooperative), ""

    stand_in = SimpleNamespace(
        driver=_driver.Driver(library), runtime=SimpleNamespace(free=lambda pointer: None), device=lambda: 0,
        stream=lambda: SimpleNamespace(ptr=0xABC), arch=lambda device: "sm_90", built=built,
    )  # fmt: skip
    monkeypatch.setattr(_launch, "_gpu", stand_in)
    monkeypatch.setattr(_launch, "_interpreting", False)
    monkeypatch.setattr(_launch.Variant, "compile", compile)
    monkeypatch.setattr(_launch, "KERNELS", {})
    monkeypatch.setenv("PYCAP_CACHE", str(tmp_path / "cache"))
    return stand_in


ROW = Row({"BLOCK": 64}, warps=4, stages=2)


def _kernel(**options):
    return _launch.Kernel("cast.forward", "y:*Y x:*X n:i32/16 beta:fp32", **options)


def test_a_launch_reaches_the_driver(machine, library):
    kernel = _kernel()
    kernel((5, 2, 1), ROW, Array(0x1000), Array(0x2010, ml_dtypes.bfloat16), 7, 0.25)
    last = library.Last().contents
    assert (list(last.grid), list(last.block), last.shared) == ([5, 2, 1], [128, 1, 1], 50000)
    assert (last.function, last.stream, last.symbol, last.cooperative) == (0x1234, 0xABC, b"kernel", 0)
    assert last.shared_allowed == 50000  # above 48 KB a kernel must ask
    assert struct.unpack_from("@PPif", bytes(last.parameters)) == (0x1000, 0x2010, 7, 0.25)
    assert last.parameter_bytes == 8 + 8 + 4 + 4 + 16  # two null pointers of Triton's own at the end
    assert not any(bytes(last.parameters)[24:40])


def test_absent_arrays_are_null(machine, library):
    _kernel()((1, 1, 1), ROW, Array(0x1000), None, 7, 0.0)
    assert struct.unpack_from("@PP", bytes(library.Last().contents.parameters)) == (0x1000, 0)


def test_an_empty_grid_launches_nothing(machine, library):
    before = library.Last().contents.launches
    _kernel()((0, 1, 1), ROW, Array(0x1000), Array(0x2000), 0, 0.0)
    assert library.Last().contents.launches == before and not machine.built


def test_cooperative_kernels_say_so(machine, library):
    _kernel(cooperative=True)((3, 1, 1), ROW, Array(0x1000), Array(0x2000), 7, 0.0)
    last = library.Last().contents
    assert last.cooperative == 1 and list(last.grid) == [3, 1, 1] and last.stream == 0xABC


@pytest.mark.parametrize(
    ("y", "x", "n", "aligned"),
    [(0x1000, 0x2010, 32, True), (0x1004, 0x2010, 32, False), (0x1000, 0x2008, 32, False), (0x1000, 0x2010, 40, False)],
)
def test_specialised_only_where_everything_is_a_multiple_of_16(machine, y, x, n, aligned):
    _kernel()((1, 1, 1), ROW, Array(y), Array(x), n, 0.0)
    assert [variant.aligned for variant, _ in machine.built] == [aligned]


def test_each_form_is_compiled_once(machine, library):
    kernel, other = _kernel(), Row({"BLOCK": 64}, warps=8)
    a, b, half = Array(0x1000), Array(0x2000), Array(0x2000, ml_dtypes.bfloat16)
    for _ in range(2):
        kernel((1, 1, 1), ROW, a, b, 16, 0.0)
        kernel((1, 1, 1), ROW, a, half, 16, 0.0)
        kernel((1, 1, 1), other, a, b, 16, 0.0)
        kernel((1, 1, 1), ROW, a, b, 16, 0.0, FLAG=True)
    assert len(machine.built) == 4
    assert len({variant.key("sm_90") for variant, _ in machine.built}) == 4


def test_what_was_compiled_is_kept_on_disk(machine, tmp_path):
    _kernel()((1, 1, 1), ROW, Array(0x1000), Array(0x2000), 16, 0.0)
    _kernel()((1, 1, 1), ROW, Array(0x1000), Array(0x2000), 16, 0.0)  # as another process would
    assert len(machine.built) == 1
    assert sorted(p.suffix for p in (tmp_path / "cache").iterdir()) == [".cubin", ".json"]


def test_half_a_file_in_the_cache_is_compiled_again(machine, tmp_path):
    _kernel()((1, 1, 1), ROW, Array(0x1000), Array(0x2000), 16, 0.0)
    facts = next((tmp_path / "cache").glob("*.json"))
    facts.write_text(facts.read_text()[:-5])
    _kernel()((1, 1, 1), ROW, Array(0x1000), Array(0x2000), 16, 0.0)
    assert len(machine.built) == 2 and json.loads(facts.read_text())["symbol"] == "kernel"


def test_prebuilt_code_is_taken_first(machine, monkeypatch, tmp_path):
    kernel = _kernel()
    variant = _launch.Variant(kernel, ROW, (("X", "fp32"), ("Y", "fp32")), (), True)
    made = _compile.Compiled(b"prebuilt", "prebuilt_kernel", 0, 64, 2)
    monkeypatch.setattr(_store, "HERE", tmp_path)
    monkeypatch.setattr(_store, "source_digest", lambda module: "digest")
    _store.write_bundle(tmp_path / "cubins" / "sm_90.zip", {variant.key("sm_90"): made})
    _store._bundle.cache_clear()
    try:
        assert _store.load(variant.key("sm_90")) == made
        kernel((1, 1, 1), ROW, Array(0x1000), Array(0x2000), 16, 0.0)
        assert not machine.built
    finally:
        _store._bundle.cache_clear()


def test_prebuilt_code_of_another_source_is_not_taken(machine, monkeypatch):
    variant = _launch.Variant(_kernel(), ROW, (("X", "fp32"), ("Y", "fp32")), (), True)
    before = variant.key("sm_90")
    monkeypatch.setattr(_store, "source_digest", lambda module: "another")
    assert variant.key("sm_90") != before


def test_without_code_and_without_triton_the_remedy_is_named(machine, monkeypatch):
    def missing(variant, arch):
        raise ImportError("No module named 'triton'")

    monkeypatch.setattr(_launch.Variant, "compile", missing)
    with pytest.raises(RuntimeError, match=r"cast\.forward.*no prebuilt code for sm_90.*pip install triton"):
        _kernel()((1, 1, 1), ROW, Array(0x1000), Array(0x2000), 16, 0.0)


def test_the_drivers_refusals_are_named(machine, library):
    kernel = _kernel()
    kernel((1, 1, 1), ROW, Array(0x1000), Array(0x2000), 16, 0.0)
    library.FailNext(719)
    with pytest.raises(
        _driver.DriverError, match=r"launching cast\.forward on a grid of \(1, 1, 1\): CUDA_ERROR_LAUNCH"
    ):
        kernel((1, 1, 1), ROW, Array(0x1000), Array(0x2000), 16, 0.0)
    with pytest.raises(_driver.DriverError, match="INVALID_IMAGE"):
        machine.driver.load(b"broken", "kernel", 0)
    with pytest.raises(_driver.DriverError, match="finding missing in its machine code: CUDA_ERROR_NOT_FOUND"):
        machine.driver.load(b"code", "missing", 0)


def test_wrong_arguments_are_named(machine):
    kernel = _launch.Kernel("cast.forward", "y:*T x:*T n:i32 beta:fp32")
    with pytest.raises(TypeError, match=r"cast\.forward: x must be float32, got float16"):
        kernel((1, 1, 1), ROW, Array(0x1000), Array(0x2000, np.float16), 16, 0.0)
    with pytest.raises(TypeError, match="takes 4 arguments, got 3"):
        kernel((1, 1, 1), ROW, Array(0x1000), Array(0x2000), 16)
    with pytest.raises(TypeError, match="n must be a number, got Array"):
        kernel((1, 1, 1), ROW, Array(0x1000), Array(0x2000), Array(0x3000), 0.0)
    with pytest.raises(ValueError, match="x must be C-contiguous"):
        kernel((1, 1, 1), ROW, Array(0x1000), Array(0x2000, contiguous=False), 16, 0.0)
    assert not machine.built


def test_described_arrays_are_passed_as_maps_sizes_and_strides(machine, library, monkeypatch):
    boxes = (((1, 8, 16, 64), 3), ((32, 64), 2))
    compiled = _compile.Compiled(b"code", "kernel", 0, 384, 2, descriptors=boxes)
    monkeypatch.setattr(_launch.Variant, "compile", lambda variant, arch: (compiled, ""))
    kernel = _launch.Kernel("cast.forward", "x:#T(A,B,C,D) w:#T(N,D) y:*T n:i32")
    x, w = Array(0x10000, ml_dtypes.bfloat16), Array(0x20000, ml_dtypes.bfloat16)
    x.shape, x.strides = (2, 14, 15, 128), (53760, 3840, 256, 2)
    w.shape, w.strides = (64, 1152), (2304, 2)
    for _ in range(2):  # the second time from the cache of maps
        kernel((7, 1, 1), ROW, x, w, Array(0x30000, ml_dtypes.bfloat16), 9)
        last = library.Last().contents
        raw = bytes(last.parameters)
        first = struct.unpack_from("<QIII12x4I16x3I20x4I", raw)
        assert first == (0x10000, 9, 4, 3, 128, 15, 14, 2, 256, 3840, 53760, 64, 16, 8, 1)
        assert struct.unpack_from("<4i4q", raw, 128) == (2, 14, 15, 128, 26880, 1920, 128, 1)
        second = 192  # the next multiple of 64 after 128 + 4*4 + 4*8
        assert struct.unpack_from("<QIII12x2I", raw, second) == (0x20000, 9, 2, 2, 1152, 64)
        assert struct.unpack_from("<2i2q", raw, second + 128) == (64, 1152, 1152, 1)
        assert struct.unpack_from("<Qi", raw, second + 152) == (0x30000, 9)
        assert last.parameter_bytes == second + 168 + 16 and list(last.block) == [384, 1, 1]
    x.data.ptr = 0x50000  # another array of the same shape
    kernel((7, 1, 1), ROW, x, w, Array(0x30000, ml_dtypes.bfloat16), 9)
    assert struct.unpack_from("<Q", bytes(library.Last().contents.parameters)) == (0x50000,)
    w.strides = (2302, 2)
    with pytest.raises(ValueError, match=r"w must be contiguous in its last dimension.*\(2302, 2\)"):
        kernel((7, 1, 1), ROW, x, w, Array(0x30000, ml_dtypes.bfloat16), 9)


def test_an_absent_optional_argument_is_a_constant(machine, library):
    kernel = _launch.Kernel(
        "cast.forward", "y:*T x:?*T s:?*fp32 n:i32", variants=[{"T": "bf16", "x": None, "RELU": True}, {"T": "fp32"}]
    )
    for _ in range(2):
        kernel((1, 1, 1), ROW, Array(0x1000), None, Array(0x3000), 9, RELU=True)
    assert struct.unpack_from("@PPi", bytes(library.Last().contents.parameters)) == (0x1000, 0x3000, 9)
    kernel((1, 1, 1), ROW, Array(0x1000), Array(0x2000), None, 9, RELU=True)
    assert struct.unpack_from("@PPi", bytes(library.Last().contents.parameters)) == (0x1000, 0x2000, 9)
    seen = [(dict(v.constants), [p.name for p in v.kernel.parameters]) for v, _ in machine.built]
    assert seen == [({"x": None, "RELU": True}, ["y", "s", "n"]), ({"s": None, "RELU": True}, ["y", "x", "n"])]
    table = {"cast.forward": {"sm_90": (ROW,)}}
    built = [(dict(v.constants), len(v.kernel.parameters)) for v in kernel.built_variants(table, "sm_90")]
    assert built[::2] == [({"x": None, "RELU": True}, 3), ({}, 4)]
    assert list(_launch.KERNELS.values()) == [kernel]


def test_maps_lie_at_multiples_of_64():
    one = _launch._parse("x:#T(BLOCK)")
    assert (
        _launch.packing([one, one], 0, [1, 1]).size == 192 + 128 + 4 + 4 + 8
    )  # after 128 + 4 + 4 + 8 the next begins at 192


def test_a_kernels_digest_covers_what_it_imports(monkeypatch, tmp_path):
    monkeypatch.setattr(_store, "HERE", tmp_path)
    digests = set()
    for own, device, deeper in ((1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2)):
        (tmp_path / "op.py").write_text(f"import triton\nfrom ._device import f\nX = {own}\n")
        (tmp_path / "_device.py").write_text(f"from ._deeper import (\n    g,\n)\nX = {device}\n")
        (tmp_path / "_deeper.py").write_text(f"X = {deeper}\n")
        _store.source_digest.cache_clear()
        digests.add(_store.source_digest("op"))
    _store.source_digest.cache_clear()
    assert len(digests) == 4


def test_boxes_are_given_by_blocks_numbers_and_parts():
    constants = {"BLOCK": 64, "N": 6}
    assert [_launch._extent(text, constants) for text in ("BLOCK", "2", "N/2")] == [64, 2, 3]
    parameter = _launch._parse("y:#T(BLOCK/2,2,N)")
    assert (parameter.kind, parameter.box, parameter.variable) == ("#T", ("BLOCK/2", "2", "N"), "T")


def test_a_signature_that_says_nothing_is_refused():
    for text in ("x:#T", "x:*T(A)", "n:i32/8"):
        with pytest.raises(ValueError, match=r"x:#T: a tensor|x:\*T\(A\): a tensor|n:i32/8: only /16"):
            _launch.Kernel("cast.forward", text)


def test_threads_do_not_share_their_parameters(machine, library):
    """Each thread packs into a buffer of its own: the driver call lets other threads run before it has copied."""
    addresses = []
    barrier = threading.Barrier(2)  # both alive at once, or one could get the other's freed memory

    def look():
        addresses.append(ctypes.addressof(_driver.parameters.buffer))
        barrier.wait()

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({*addresses, ctypes.addressof(_driver.parameters.buffer)}) == 3


def test_rows_are_chosen_by_type_and_size():
    small, halves, rest = Row({"B": 1}, upto={"m": 32}), Row({"B": 2}, types=("bf16", "fp16")), Row({"B": 3})
    table = {"k.f": {"sm_80": (small, halves, rest), "interpreter": (rest,)}}
    assert _rows.choose(table, "k.f", "sm_80", "fp32", m=32) is small
    assert _rows.choose(table, "k.f", "sm_90", "bf16", m=33) is halves  # sm_90 has no rows of its own
    assert _rows.choose(table, "k.f", "sm_121", "fp32", m=33) is rest
    assert _rows.choose(table, "k.f", "interpreter", "bf16", m=1) is rest
    with pytest.raises(KeyError, match=r"no row for k\.g on sm_80"):
        _rows.choose(table, "k.g", "sm_80", "fp32")


def test_declared_variants_meet_the_rows_for_their_types(monkeypatch):
    monkeypatch.setattr(_launch, "KERNELS", {})
    kernel = _launch.Kernel(
        "k.f", "y:*T b:*fp32 n:i32", variants=[{"T": "fp32", "FLAG": True}, {"T": "bf16", "FLAG": False}]
    )
    table = {"k.f": {"sm_80": (Row({"B": 2}, types=("bf16",)), Row({"B": 3}, upto={"n": 4}))}}
    made = [(dict(v.types)["T"], v.row.blocks["B"], dict(v.constants)) for v in kernel.built_variants(table, "sm_80")]
    assert made[::2] == [("fp32", 3, {"FLAG": True}), ("bf16", 2, {"FLAG": False}), ("bf16", 3, {"FLAG": False})]
    assert made[1::2] == made[::2]  # aligned, and not


def test_a_file_of_code_for_an_older_minor_version_serves(monkeypatch):
    assert [_launch.code_arch(a) for a in ("sm_80", "sm_86", "sm_89", "sm_90")] == ["sm_80", "sm_80", "sm_80", "sm_90"]


def test_ptx_parameters_are_read():
    ptx = (
        ".visible .entry k(\n .param .align 64 .b8 d[128],\n .param .u64 .ptr .global .align 1 k_param_0,\n"
        " .param .u32 k_param_1,\n .param .f32 k_param_2\n)\n.reqntid 128\n{ ld.param.u64 %r, [k_param_0]; }"
    )
    assert _compile.ptx_parameters(ptx) == [(128, 64), (8, 8), (4, 4), (4, 4)]
