"""Every backend's primitives against the reference by the rule of two, and how backends are chosen."""

from __future__ import annotations

import importlib
import os
import platform
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from pycap import backends, ops
from pycap.autograd import Tensor
from pycap.device import DeviceError, bfloat16
from pycap.testing import CASES, Case, ComparisonError, compare
from pycap.testing.arguments import Beta, Double, Grad, InOut, Out, Parameter

WHOLE = ("reference", "cpp", pytest.param("triton", marks=pytest.mark.triton))  # with all primitives
BACKENDS = (*WHOLE, pytest.param("cuda", marks=pytest.mark.emu))  # whose cases are in tests/kernels/test_cuda_cases.py


@pytest.fixture(params=BACKENDS)
def module(request):
    reason = backends.available(request.param)
    if reason:
        pytest.skip(f"backend {request.param}: {reason}")
    with backends.use(request.param):
        yield importlib.import_module(f"pycap.backends.{request.param}")


def test_every_primitive_has_cases_and_a_reference():
    reference = importlib.import_module("pycap.backends.reference")
    assert set(CASES) == set(backends.PRIMITIVES)
    assert all(callable(getattr(reference, name)) for name in backends.PRIMITIVES)
    for primitive, cases in CASES.items():
        assert len({c.name for c in cases}) == len(cases), f"{primitive}: two cases share a name"


def test_cases_are_the_same_on_every_call():
    for cases in CASES.values():
        first, second = cases[-1].arguments(), cases[-1].arguments()
        for a, b in zip(first, second, strict=True):
            if isinstance(a, np.ndarray):
                assert a.tobytes() == b.tobytes()


def _name(module):
    return module.__name__.rsplit(".", 1)[1]


def _all_hold(primitive, module, dtype):
    if not hasattr(module, primitive):
        pytest.fail(f"{module.__name__} lacks {primitive}")
    failures = []
    for case in CASES[primitive]:
        try:
            compare(case, module, dtype)
        except ComparisonError as error:
            failures.append(str(error))
    assert not failures, f"{len(failures)} of {len(CASES[primitive])} cases:\n" + "\n".join(failures)


@pytest.mark.parametrize("module", WHOLE, indirect=True)
@pytest.mark.parametrize("primitive", backends.PRIMITIVES)
def test_rule_of_two(module, primitive):
    _all_hold(primitive, module, np.float32)


@pytest.mark.parametrize("module", WHOLE, indirect=True)
@pytest.mark.parametrize("primitive", backends.BFLOAT16)
def test_rule_of_two_in_bfloat16(module, primitive):
    _all_hold(primitive, module, bfloat16())


# What a primitive does with arrays that break the contract ------------------------------------------------------------


def _strided(array: np.ndarray) -> np.ndarray:
    """The same values, not C-contiguous."""
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    view = wide[..., ::2]
    view[...] = array
    return view


def _concrete(case: Case, dtype=np.float32) -> list:
    """Arguments as a caller would pass them, activations of `dtype`, all betas 0."""

    def make(a):
        if isinstance(a, list):
            return [make(e) for e in a]
        if isinstance(a, (Out, Grad)):
            floats = dtype if a.role == "activation" else np.float32
            return np.zeros(a.shape, floats if getattr(a, "dtype", "float") == "float" else a.dtype)
        if isinstance(a, (Double, InOut, Parameter)):
            return a.array.copy()
        if isinstance(a, Beta):
            return 0.0 if isinstance(a.names, str) else (0.0,) * len(a.names)
        if isinstance(a, np.ndarray):
            return a.astype(dtype) if a.dtype.kind == "f" else a.copy()
        return a

    return [make(a) for a in case.arguments()]


def _written(arguments: list, markers: list) -> list[np.ndarray]:
    """The arrays that a call wrote."""
    arrays = []
    for argument, marker in zip(arguments, markers, strict=True):
        if isinstance(marker, list):
            arrays += _written(argument, marker)
        elif isinstance(marker, (Out, Grad, InOut)):
            arrays.append(argument)
    return arrays


SAMPLES = {
    "conv2d_forward": "tile_plus_1-bias-relu", "conv2d_pool_forward": "tile_plus_1",
    "conv2d_backward_data": "tile_plus_1-pool", "conv2d_backward_weight": "tile_plus_1-pool",
    "maxpool_forward": "odd", "maxpool_backward": "odd", "linear_forward": "primes-relu",
    "linear_backward_data": "primes-relu", "linear_backward_weight": "primes-relu", "dropout": "sequence",
    "embedding_forward": "primes", "embedding_backward": "primes-stale", "lstm_forward": "primes-state-mask",
    "lstm_backward": "primes-state-mask-dhc", "lstm_cell_forward": "primes", "lstm_cell_backward": "primes-dhc",
    "linear_xent_forward": "primes-weights", "linear_xent_backward": "primes", "log_softmax_topk": "greedy",
    "preprocess": "window", "cast": "primes-narrow",
}  # fmt: skip


def _sample(primitive: str) -> Case:
    return _case(primitive, SAMPLES[primitive])


def _case(primitive: str, name: str) -> Case:
    return next(c for c in CASES[primitive] if c.name == name)


@pytest.mark.parametrize("primitive", SAMPLES)
def test_strided_arrays_are_refused_or_handled(module, primitive):
    """Each array in turn is not contiguous: an error that says so, or the same numbers."""
    if not hasattr(module, primitive):
        assert _name(module) in backends.COMPANIONS
        return
    function, markers = getattr(module, primitive), _sample(primitive).arguments()
    plain = _concrete(_sample(primitive))
    function(*plain)
    for position, marker in enumerate(markers):
        arguments = _concrete(_sample(primitive))
        if not isinstance(arguments[position], np.ndarray) or arguments[position].ndim == 0:
            continue
        arguments[position] = _strided(arguments[position])
        assert not arguments[position].flags.c_contiguous
        try:
            function(*arguments)
        except (TypeError, ValueError) as error:
            assert "contiguous" in str(error), f"{primitive} argument {position} {marker}: {error}"
            named = primitive.removeprefix("lstm_cell_") in str(error) or "lstm" in str(error)
            assert named or re.match(r"\w+\.\w+: \w+ must be C-contiguous", str(error))  # a kernel, and its argument
            continue
        for got, expected in zip(_written(arguments, markers), _written(plain, markers), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5, err_msg=f"argument {position}")


@pytest.mark.parametrize("primitive", SAMPLES)
def test_cpp_refuses_wrong_dtypes_and_shapes(primitive):
    """No wrong array reaches a C++ loop: each in turn has another dtype, or one element too few on its last axis."""
    if backends.available("cpp"):
        pytest.skip(f"backend cpp: {backends.available('cpp')}")
    function, markers = (
        getattr(importlib.import_module("pycap.backends.cpp"), primitive),
        _sample(primitive).arguments(),
    )
    for position in range(len(markers)):
        whole = _concrete(_sample(primitive))[position]
        if not isinstance(whole, np.ndarray):
            continue
        arguments = _concrete(_sample(primitive))
        arguments[position] = whole.astype(np.float64 if whole.dtype.kind == "f" else np.int64)
        with pytest.raises(TypeError, match=r"must be \w+, got (float64|int64)"):
            function(*arguments)
        if (primitive, position) in {("log_softmax_topk", 2), ("embedding_backward", 3)}:
            continue  # a vocabulary may have any size, and so may the list of stale rows
        arguments[position] = np.ascontiguousarray(whole[..., :-1])
        with pytest.raises((ValueError, TypeError)):
            function(*arguments)


@pytest.mark.parametrize("primitive", backends.BFLOAT16)
def test_cpp_refuses_precisions_that_do_not_belong_together(cpp, primitive):
    """Each array in turn is float32 among bfloat16 activations, or a parameter bfloat16: never are bits taken for numbers."""
    function, plain = getattr(cpp, primitive), _concrete(_sample(primitive), bfloat16())
    function(*plain)
    changed = 0
    for position, array in enumerate(plain):
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fV" or primitive == "cast":
            continue
        if (primitive, position) in {("preprocess", 0), ("linear_forward", 2)}:
            continue  # the only activation; weights that were rounded beforehand
        arguments = list(plain)
        arguments[position] = array.astype(bfloat16() if array.dtype == np.float32 else np.float32)
        with pytest.raises(TypeError, match="must be (float32|bfloat16), got (float32|bfloat16)"):
            function(*arguments)
        changed += 1
    assert changed or primitive == "cast"


# Selection ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def _restore():
    before = dict(backends.kernels.__dict__)
    choices, named = list(backends._choices), backends._named
    yield
    backends.kernels.__dict__.clear()
    backends.kernels.__dict__.update(before)
    backends._choices[:], backends._named = choices, named


def test_named_backend_serves_everything(_restore, module):
    name = _name(module)
    backends.select("cpu", name)
    chosen = {c.primitive: c.backend for c in backends.explain()}
    assert list(chosen) == list(backends.PRIMITIVES)
    for primitive in backends.PRIMITIVES:
        serving = (
            module if hasattr(module, primitive) else importlib.import_module(f"pycap.backends.{chosen[primitive]}")
        )
        assert getattr(backends.kernels, primitive) is getattr(serving, primitive)
        assert chosen[primitive] == name or (serving is not module and chosen[primitive] == backends.COMPANIONS[name])
    assert name in chosen.values() and backends.named() == name


def test_fusions_come_from_the_backend_that_serves_what_they_extend(_restore, module):
    name = _name(module)
    backends.select("cpu", name)
    chosen = {c.primitive: c.backend for c in backends.choose("cpu", name)}
    for fusion, primitive in backends.FUSIONS.items():
        serving = importlib.import_module(f"pycap.backends.{chosen[primitive]}")
        assert getattr(backends.kernels, fusion) is getattr(serving, fusion, None)
        assert (getattr(backends.kernels, fusion) is None) == (name == "cpp")


def test_a_fusion_is_none_where_another_backend_serves_the_primitive(_restore, partial, monkeypatch, capsys):
    """Each is asked of the backend of its own primitive, and of no other."""
    fused = SimpleNamespace(conv2d_forward=print, conv2d_first_forward=max, conv2d_first_backward_weight=min)
    partial["cuda"] = fused
    partial["triton"].conv2d_first_forward = print
    backends.select("cpu", "cuda")
    assert backends.kernels.conv2d_first_forward is max
    assert backends.kernels.conv2d_first_backward_weight is None and backends.kernels.conv2d_backward_data_relu is None
    backends.explain()
    assert capsys.readouterr().out.endswith("fusions: conv2d_first_forward\n")
    with backends.use("cpp") if not backends.available("cpp") else backends.use("reference"):
        assert backends.kernels.conv2d_first_forward is not max
    assert backends.kernels.conv2d_first_forward is max


def test_the_first_use_of_a_fusion_selects(_restore):
    backends.kernels.__dict__.clear()
    assert callable(backends.kernels.conv2d_backward_data_relu) or backends.kernels.conv2d_backward_data_relu is None
    assert backends.kernels.__dict__.keys() == {*backends.PRIMITIVES, *backends.FUSIONS}


def test_use_restores_what_was_selected(_restore):
    backends.select("cpu", "reference")
    held = backends.kernels.linear_forward
    with pytest.raises(KeyError), backends.use("reference"):
        raise KeyError
    assert backends.kernels.linear_forward is held


def test_environment_names_the_default(_restore, monkeypatch):
    monkeypatch.setenv("PYCAP_BACKEND", "reference")
    backends.select()
    assert {c.backend for c in backends.explain()} == {"reference"}
    backends.select("cpu", "auto")  # as commands do where --backend does not say
    assert {c.backend for c in backends.explain()} == {"reference"}
    monkeypatch.setenv("PYCAP_BACKEND", "nonsense")
    with pytest.raises(
        backends.BackendError, match=r"'nonsense' is unknown.*choose from auto, cpp, reference, triton, cuda"
    ):
        backends.select()


def test_automatic_choice_falls_through_and_says_why(_restore, monkeypatch, capsys):
    load = backends._load

    def broken(name):
        if name == "cpp":
            raise ImportError("no compiler here")
        return load(name)

    monkeypatch.setattr(backends, "_load", broken)
    backends.select("cpu", "auto")
    assert {c.backend for c in backends.explain()} == {"reference"}
    assert "cpp: no compiler here" in capsys.readouterr().out
    assert backends.available("cpp") == "no compiler here"
    with pytest.raises(backends.BackendError, match=r"cpp.*no compiler here.*make dev"):
        backends.select("cpu", "cpp")


def test_a_backend_that_lacks_a_primitive_leaves_it_to_the_next(_restore, monkeypatch):
    load = backends._load

    class Partial:
        linear_forward = staticmethod(lambda *arguments: None)

    monkeypatch.setattr(backends, "_load", lambda name: Partial if name == "cpp" else load(name))
    backends.select("cpu", "auto")
    chosen = {c.primitive: c for c in backends.explain()}
    assert chosen["linear_forward"].backend == "cpp"
    assert chosen["maxpool_forward"].backend == "reference" and "cpp: lacks it" in chosen["maxpool_forward"].reason


@pytest.fixture
def partial(monkeypatch):
    """Stand-ins for the GPU's backends, on the CPU: what there is of them may be changed."""
    stand_ins = {
        "cuda": SimpleNamespace(lstm_forward=lambda *arguments: None, note=lambda primitive: f"prefers {primitive}"),
        "triton": SimpleNamespace(**dict.fromkeys(backends.PRIMITIVES, lambda *arguments: None)),
    }
    load = backends._load

    def loaded(name):
        if isinstance(stand_ins.get(name), str):
            raise ImportError(stand_ins[name])
        return stand_ins.get(name) or load(name)

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(backends, "_load", loaded)
    return stand_ins


def test_cuda_by_name_leaves_what_it_lacks_to_triton(_restore, partial):
    backends.select("cpu", "cuda")
    chosen = {c.primitive: c for c in backends.explain()}
    assert (chosen["lstm_forward"].backend, chosen["lstm_forward"].reason) == ("cuda", "asked for")
    assert backends.kernels.lstm_forward is partial["cuda"].lstm_forward
    assert (chosen["cast"].backend, chosen["cast"].reason) == ("triton", "cuda: lacks it")
    assert {c.backend for c in chosen.values()} == {"cuda", "triton"} and backends.named() == "cuda"
    with backends.use("auto"):
        assert backends.named() == "auto"
    assert backends.named() == "cuda"


@pytest.mark.parametrize("missing", ["cuda", "triton"])
def test_cuda_by_name_raises_where_it_or_triton_cannot_load(_restore, partial, missing):
    partial[missing] = "the module was not built"
    before = backends.named()
    with pytest.raises(
        backends.BackendError, match=rf"'cuda' cannot serve \w+ on 'cpu' \({missing}: the module was not"
    ):
        backends.select("cpu", "cuda")
    assert backends.named() == before


def test_the_automatic_choice_says_what_the_table_prefers(_restore, partial, monkeypatch):
    monkeypatch.setitem(backends.CHAINS, "cpu", ("cuda", "triton", "reference"))
    chosen = {c.primitive: c for c in backends.choose("cpu")}
    assert chosen["lstm_forward"].reason == "first of the chain; prefers lstm_forward"
    assert (chosen["cast"].backend, chosen["cast"].reason) == ("triton", "cuda: lacks it")
    partial["cuda"] = "the module was not built"
    chosen = {c.primitive: c for c in backends.choose("cpu")}
    assert {c.backend for c in chosen.values()} == {"triton"}
    assert chosen["lstm_forward"].reason == "cuda: the module was not built"


def test_the_cuda_backend_says_which_form_is_preferred():
    cuda = pytest.importorskip("pycap.backends.cuda")
    assert cuda.note("conv2d_pool_forward") == "conv2d.form prefers portable on interpreter"
    assert cuda.note("lstm_backward") == "lstm.form prefers step on interpreter"
    assert cuda.note("lstm_cell_forward") == "lstm_cell.form prefers portable on interpreter"


def test_unknown_device_and_unknown_primitive():
    with pytest.raises(DeviceError, match=r"'tpu' is unknown; choose from auto, cpu, cuda"):
        backends.select("tpu")
    with pytest.raises(AttributeError, match="linear_forwards"):
        _ = backends.kernels.linear_forwards


def test_first_use_selects(_restore):
    backends.kernels.__dict__.clear()
    y = ops.linear(Tensor(np.ones((2, 3), np.float32)), Tensor(np.ones((4, 3), np.float32)))
    np.testing.assert_array_equal(y.data, np.full((2, 4), 3.0, np.float32))


def test_float32_products_are_set_by_name():
    assert backends.float32_products() == "fp32"
    backends.set_float32_products("tf32")
    assert backends.float32_products() == "tf32"
    with pytest.raises(ValueError, match="'bf16': choose from fp32, tf32"):
        backends.set_float32_products("bf16")
    assert backends.float32_products() == "tf32"


# The C++ backend's threads and instruction sets -----------------------------------------------------------------------


@pytest.fixture
def cpp():
    reason = backends.available("cpp")
    if reason:
        pytest.skip(f"backend cpp: {reason}")
    module = importlib.import_module("pycap.backends.cpp")
    before = module.get_num_threads()
    yield module
    backends.set_threads(before)


# Beside the samples: each of the convolution's algorithms, and what is divided among threads by size.
THREADED = [
    *SAMPLES.items(),
    *((f"conv2d_{p}", f"{name}{suffix}")
      for name in ("c48_k16_tile_plus_1", "c16_k32_many_tiles", "c3_k64_many_pixels", "batch0")
      for p, suffix in (("forward", "-bias-relu"), ("backward_data", "-relu"), ("backward_weight", "-pool"))),
    ("embedding_backward", "long_rows"), ("embedding_backward", "long_rows-gaps"), ("cast", "long-narrow"),
    ("preprocess", "many_rows"),
    ("linear_xent_backward", "tall"), ("sgd_step", "all"), ("rmsprop_step", "all"),
    ("adam_step", "all-step2"), ("sum_squares", "long"),
]  # fmt: skip


@pytest.mark.parametrize("threads", [1, 3])
def test_rule_of_two_at_other_thread_counts(cpp, threads):
    """Three threads divide no shape evenly, and some get nothing to do."""
    backends.set_threads(threads)
    assert cpp.get_num_threads() == threads
    for primitive, name in THREADED:
        compare(_case(primitive, name), cpp)
        if primitive in backends.BFLOAT16:
            compare(_case(primitive, name), cpp, bfloat16())


@pytest.mark.parametrize("threads", [1, 2])
def test_results_repeat_bit_for_bit(cpp, threads):
    """Resuming a run must give the losses of an uninterrupted one."""
    backends.set_threads(threads)
    for primitive, name in THREADED:
        for dtype in (np.float32, bfloat16()) if primitive in backends.BFLOAT16 else (np.float32,):
            results = []
            for _ in range(3):
                arguments, markers = _concrete(_case(primitive, name), dtype), _case(primitive, name).arguments()
                returned = getattr(cpp, primitive)(*arguments)
                results.append([returned, *(a.tobytes() for a in _written(arguments, markers))])
            assert results[0] == results[1] == results[2], f"{primitive}[{name}] {dtype} on {threads} threads"


_ISA_SCRIPT = """
import sys
import numpy as np
from pycap.backends import BFLOAT16, cpp
from pycap.device import DeviceError, bfloat16
from pycap.testing import CASES, compare
assert cpp.isa() == sys.argv[1] and cpp.info()["bf16"] == sys.argv[2], cpp.info()
for primitive, cases in CASES.items():
    wide = [np.float32] if sys.argv[2] == "float32" else []  # tiles stand beside v4's float32 kernels
    for dtype in (*wide, bfloat16()) if primitive in BFLOAT16 else wide:
        for case in cases[:: max(1, len(cases) // 8)]:
            compare(case, cpp, dtype)
print("all held")
"""


@pytest.mark.skipif(platform.machine() not in {"x86_64", "AMD64"}, reason="instruction sets are x86's")
@pytest.mark.parametrize(
    ("isa", "bf16"),
    [("v1", "float32"), ("v3", "float32"), ("v4", "float32"), ("v4", "amx")],
)
def test_rule_of_two_on_every_instruction_set(isa, bf16):
    """One wheel serves CPUs with AMX, AVX-512, AVX2 or none of them: each of its kernels' builds is checked."""
    if backends.available("cpp"):
        pytest.skip(f"backend cpp: {backends.available('cpp')}")
    environment = os.environ | {
        "PYCAP_ISA": isa,
        "PYCAP_BF16": bf16,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    run = subprocess.run(
        [sys.executable, "-c", _ISA_SCRIPT, isa, bf16],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    if "lacks its instructions" in run.stderr:
        pytest.skip(f"this CPU: {run.stderr.strip().splitlines()[-1]}")
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "all held"
