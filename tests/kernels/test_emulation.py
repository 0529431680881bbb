"""The CUDA emulation itself: it runs right kernels rightly, and names the kernel, thread and line of each planted fault."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.emu

SOURCE = Path(__file__).resolve().parents[2] / "csrc/emu/planted.cu"
SEEDS = range(5)

#: What a fault is reported as, whatever the order of the threads.
REPORTS = {
    "missing_barrier": r"a race: .* of shared memory that block \(\d,0,0\) thread \(\d+,0,0\) (wrote|read)",
    "race_between_blocks": r"a race: writes 4 bytes of global memory that block",
    "out_of_bounds": r"out of bounds: writes 4 bytes 4 bytes past the end of array 0 of the call \(1024 bytes\)",
    "out_of_shared_bounds": r"out of bounds: reads 4 bytes of shared memory outside of every array",
    "uninitialised": r"reads 4 bytes of shared memory that nothing has written",
    "divergent_barrier": r"threads wait for each other for ever: 24 returned.*; 40 wait at the barrier of their block",
    "two_barriers": r"a divergent barrier: others of its block wait at the one in line \d+",
    "divergent_lanes": r"divergent lanes: it comes to ",
    "missing_warp_barrier": r"a race: .* of shared memory that block \(\d,0,0\) thread",
    "early_release": r"a race: .* of global memory that block",
    "missing_grid_barrier": r"a race: .* of global memory that block",
    "endless_wait": r"threads wait for each other for ever: 4 poll a counter at",
    "endless_turns": r"threads poll for ever: \d polls? at",
    "missing_cluster_barrier": r"a race: .* of shared memory that block",
    "early_begin": r"writes the shared memory of a block that has not begun",
    "early_end": r"reads the shared memory of a block that has ended",
    "missing_copy_wait": r"reads 16 bytes of shared memory that an asynchronous copy may still be writing",
    "misaligned": r"misaligned: reads 16 bytes at an address that is no multiple of 16",
    "tensor_cores": r"(reads 16 bytes of shared memory that nothing has written|a race: .* of shared memory)",
    "wmma": r"out of bounds: writes 4 bytes",
    "warp_sums": r"a race: .* of global memory",
}


@pytest.fixture
def emulation():
    return pytest.importorskip("pycap._cuda_emu")


def aligned(dtype, size):
    raw = np.zeros(size * 4 + 16, np.uint8)
    start = -raw.ctypes.data % 16
    return raw[start : start + 4 * size].view(dtype)


def run(emulation, name, healthy, seed=1):
    """(out, in, counters) after a planted kernel."""
    out, values, counters = aligned(np.float32, 256), aligned(np.float32, 256), aligned(np.int32, 4)
    out.fill(np.nan)
    values[:] = np.random.default_rng(seed).integers(-8, 9, 256)  # whose products are exact in 16 bits
    spans = [(a.ctypes.data, a.nbytes) for a in (out, values, counters)]
    emulation.set_seed(seed)
    emulation.track(spans)
    try:
        emulation.run_planted(name, healthy, *(address for address, _ in spans))
    finally:
        emulation.untrack(spans)
    return out, values, counters


def expected(name, x):
    """What the healthy kernel makes of in."""
    blocks = x.reshape(4, 64)
    square = x.reshape(16, 16)
    return {
        "missing_barrier": blocks[:, ::-1].ravel(),
        "out_of_shared_bounds": x.reshape(-1, 2)[:, ::-1].ravel(),
        "divergent_lanes": x.reshape(-1, 2)[:, ::-1].ravel(),
        "missing_warp_barrier": x.reshape(-1, 2)[:, ::-1].ravel(),
        "uninitialised": np.where(np.arange(256) % 2, 0, x),
        "early_release": np.roll(x, -64),
        "missing_grid_barrier": np.roll(x, -64),
        "missing_cluster_barrier": np.roll(x, -64),
        "early_begin": np.roll(x, -64),
        "early_end": np.roll(x, -64),
        "tensor_cores": (square @ square[:8].T).ravel(),
        "wmma": (square @ square.T).ravel(),
        "warp_sums": np.repeat([w.sum() + 1000 * (w > 0).sum() for w in x.reshape(8, 32)], 32),
    }.get(name, x)


def test_every_planted_kernel_is_tested(emulation):
    assert set(emulation.planted_names()) == set(REPORTS)


@pytest.mark.parametrize("name", REPORTS)
def test_healthy_kernels_run_rightly(emulation, name):
    for seed in SEEDS:
        out, x, counters = run(emulation, name, True, seed)
        right = expected(name, x)
        np.testing.assert_array_equal(out[: right.size], right)
        assert np.isnan(out[right.size :]).all()
        if name == "warp_sums":
            assert counters[0] == 256


@pytest.mark.parametrize("name", REPORTS)
def test_faults_are_reported_with_kernel_thread_and_line(emulation, name):
    lines = [i for i, line in enumerate(SOURCE.read_text("utf-8").splitlines(), 1) if line.endswith(f"// {name}")]
    for seed in SEEDS:
        with pytest.raises(RuntimeError) as caught:
            run(emulation, name, False, seed)
        text = str(caught.value)
        assert re.match(rf"{name}: ", text)
        assert re.search(r"block \(\d,0,0\) thread \(\d+,0,0\)", text), text
        assert re.search(REPORTS[name], text), text
        places = [int(line) for line in re.findall(r"csrc/emu/planted\.cu:(\d+)", text)]
        assert set(places) & set(lines), f"{text}; planted in {lines}"


def test_a_fault_leaves_the_emulation_usable(emulation):
    with pytest.raises(RuntimeError):
        run(emulation, "endless_wait", False)
    out, x, _ = run(emulation, "missing_grid_barrier", True)
    np.testing.assert_array_equal(out, np.roll(x, -64))


def test_untracked_memory_may_not_be_touched(emulation):
    out, values, counters = (aligned(t, n) for t, n in ((np.float32, 256), (np.float32, 256), (np.int32, 4)))
    spans = [(out.ctypes.data, out.nbytes)]
    emulation.track(spans)
    try:
        with pytest.raises(RuntimeError, match=r"race_between_blocks: .*out of bounds: reads 4 bytes"):
            emulation.run_planted(
                "race_between_blocks", True, out.ctypes.data, values.ctypes.data, counters.ctypes.data
            )
    finally:
        emulation.untrack(spans)


def test_cooperative_grids_must_fit(emulation):
    multiprocessors, capability, shared = emulation.gpu()
    emulation.set_gpu(0, capability, shared)
    try:
        with pytest.raises(RuntimeError, match="missing_grid_barrier: 4 blocks cannot all run at once"):
            run(emulation, "missing_grid_barrier", True)
    finally:
        emulation.set_gpu(multiprocessors, capability, shared)
