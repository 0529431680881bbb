"""The Gluon emulator: copies at the borders, barriers, and the faults of synchronisation that it must see in a kernel."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from tests.kernels import test_conv2d_hopper as convolutions
from tests.kernels.gluon_emulator import Barrier, Deadlock, EmulatorError, TensorMap

pytestmark = pytest.mark.triton
KERNELS = Path(convolutions.conv2d_hopper.__file__).parent


FILES = ("conv2d_hopper.py", "conv2d_hopper_weight.py", "hopper_boxes.py")


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], ModuleType]:
    """A function that gives the kernels with every `old` in their source replaced by `new`."""

    def planted(old: str, new: str) -> ModuleType:
        package = tmp_path / "planted"
        package.mkdir()
        sources = {name: (KERNELS / name).read_text(encoding="utf-8") for name in FILES}
        assert any(old in source for source in sources.values())
        for name, source in sources.items():
            (package / name).write_text(source.replace(old, new), encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        for name in [name for name in sys.modules if name.split(".")[0] == "planted"]:
            monkeypatch.delitem(sys.modules, name)
        return importlib.import_module("planted.conv2d_hopper")

    return planted


def forward(module: ModuleType, seed: int) -> None:
    """Three tiles of two blocks of channels: every buffer is filled several times."""
    convolutions.run_forward("blocks of channels, one program", seed=seed, module=module)


def backward_data(module: ModuleType, seed: int) -> None:
    convolutions.run_backward_data("filters in blocks, images left over", True, True, seed, module)


def backward_weight(module: ModuleType, seed: int) -> None:
    convolutions.run_backward_weight("several rounds of boxes", seed=seed, module=module)


WRONG = (AssertionError, EmulatorError)  # wrong numbers, or what follows from them

# What is planted: (the run that must fail, the text, what stands in its place, how it must fail).
FAULTS = {
    "the loader's phase of pixels never flips": (
        forward, "x_empty.index(s), rounds & 1 ^ 1", "x_empty.index(s), 1", Deadlock,
    ),
    "the consumers' phase of pixels never flips": (
        forward, "x_full.index(s), rounds & 1)", "x_full.index(s), 0)", WRONG,
    ),
    "weights are given back while they are read": (
        forward, "w_empty.index((taps + NB - 1) % NB), count=1, pred=earlier", "w_empty.index(taps % NB), count=1", WRONG,
    ),
    "pixels are given back while they are read": (
        backward_data, "x_empty.index((s + 2) % 3), count=1, pred=earlier", "x_empty.index(s), count=1", WRONG,
    ),
    "pixels are read before they have come": (
        forward, "mbarrier.wait(x_full.index(s), rounds & 1)", "x_full.index(s)", WRONG,
    ),
    "weights are read before they have come": (
        forward, "mbarrier.wait(w_full.index(slot), taps // NB & 1)", "w_full.index(slot)", WRONG,
    ),
    "one consumer's arrival is missing": (forward, "mbarrier.arrive(x_empty.index(2), count=1)", "taps", Deadlock),
    "an arrival too many": (forward, "x_empty.index(2), count=1", "x_empty.index(2), count=3", EmulatorError),
    "bytes that never come": (forward, "expect(x_full.index(s), 2 *", "expect(x_full.index(s), 3 *", Deadlock),
    "the sums are used before the last product": (
        forward, "acc = warpgroup_mma_wait(0, deps=(acc,))", "acc = warpgroup_mma_wait(1, deps=(acc,))", EmulatorError,
    ),
    "no fence before the store": (
        forward, "fence_async_shared()\n            tma_store(y, [y0, n0", "tma_store(y, [y0, n0", EmulatorError,
    ),
    "outputs are overwritten while they are stored": (
        forward, "tma.store_wait(pendings=OUT - 1)", "tma.store_wait(pendings=OUT)", AssertionError,
    ),
    "the kernel ends before its stores": (
        forward, "    tma.store_wait(pendings=0)\n\n", "\n", EmulatorError,
    ),
    "the mask is read before it has come": (
        backward_data, "mbarrier.wait(x_ready.index(half * OUT + i % OUT), ", "max(0, ", WRONG,
    ),
    "the mask overwrites what is being stored": (
        backward_data, "            tma.store_wait(pendings=0)\n            for i", "            for i", AssertionError,
    ),
    "a box is given back while it is read": (
        backward_weight,
        "            top, middle, bottom = warpgroup_mma_wait(0",
        "            mbarrier.arrive(empty.index(i), count=1)\n            top, middle, bottom = warpgroup_mma_wait(0",
        WRONG,
    ),
    "an operand off the swizzle's period": (
        forward, "[1, PX, BK], ROWS).index(rounds >> 31)", "[2 * PX, BK // 2], ROWS).slice(1, PX)", EmulatorError,
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(fault: str, plant: Callable[[str, str], ModuleType]) -> None:
    run, old, new, error = FAULTS[fault]
    module = plant(old, new)
    with pytest.raises(error):
        for seed in range(20):
            run(module, seed)


def test_sound_kernels_pass_in_every_order() -> None:
    for seed in range(10):
        for run in (forward, backward_data, backward_weight):
            run(convolutions.conv2d_hopper, seed)


def test_a_deadlock_says_who_waits_for_what(plant: Callable[[str, str], ModuleType]) -> None:
    _, old, new, _ = FAULTS["one consumer's arrival is missing"]
    with pytest.raises(Deadlock) as caught:
        forward(plant(old, new), 0)
    message = str(caught.value)
    assert "loader 2 waits at hopper_boxes.py:" in message
    assert (
        "mbarrier.wait(x_empty.index(s), rounds & 1 ^ 1) (phase 1: 2 of 2 arrivals and 0 bytes missing)" in message
    ), message


def test_a_block_over_the_border_reads_zeros_and_is_clipped_when_written() -> None:
    array = np.arange(32, dtype=np.float32).reshape(4, 8)
    corner = TensorMap(array, [2, 8])
    assert corner.read([-1, -4]).tolist() == [[0] * 8, [0, 0, 0, 0, 0, 1, 2, 3]]
    assert corner.read([3, 4]).tolist() == [[28, 29, 30, 31, 0, 0, 0, 0], [0] * 8]
    assert not corner.read([4, 0]).any()
    assert not corner.read([0, -8]).any()
    corner.write([3, 4], np.full((2, 8), -1, np.float32))
    corner.write([9, 0], np.full((2, 8), -2, np.float32))
    assert array[3].tolist() == [24, 25, 26, 27, -1, -1, -1, -1]
    assert (array[:3].ravel() == np.arange(24)).all()


@pytest.mark.parametrize(
    ("array", "block"),
    [
        (np.zeros((4, 4, 4), np.float16), [2, 2, 4]),  # rows of 8 bytes
        (np.zeros((4, 12), np.float16), [2, 8]),  # rows 24 bytes apart
        (np.zeros((512, 8), np.float16), [512, 8]),
        (np.zeros((8, 8), np.float32).T, [4, 8]),
    ],
)
def test_what_no_tensor_map_can_describe_is_refused(array: np.ndarray, block: list[int]) -> None:
    with pytest.raises(EmulatorError):
        TensorMap(array, block)


def test_a_barrier_counts_arrivals_and_bytes() -> None:
    barrier = Barrier()
    barrier.init(2)
    barrier.signal(1, 64)
    barrier.signal(1, 0)
    assert barrier.parity == 0  # 64 bytes are missing
    barrier.signal(0, -64)
    assert barrier.parity == 1
    barrier.signal(0, -32)  # bytes may come before they are expected
    barrier.signal(2, 0)
    assert barrier.parity == 1
    barrier.signal(0, 32)
    assert barrier.parity == 0
