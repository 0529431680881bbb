"""The feed: the loader's batches, whatever the device does when; no buffer reused too early; the time that is waited."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pycap import backends, device
from pycap.data import DataError, Example
from pycap.data.images import PreprocessSpec
from pycap.data.loader import Batch, Loader
from pycap.data.vocab import Vocabulary
from pycap.training import feed as feeding
from pycap.training.feed import BUFFERS, Fed, Feed, Stall
from tests import cupy_standin
from tests.data.fixtures import truncate, write_jpeg
from tests.train.late_cuda import POISON, LateCuda, set_on

SPEC = PreprocessSpec(20, 16)
VOCAB = Vocabulary.build(["a cat"], 1)
SEEDS = [None, *range(12)]  # None: all of the device's work as late as possible


def make_loader(folder: Path, count: int = 11, **options: Any) -> Loader:
    """Batches of 4, 4, ..., and what is left."""
    examples = [
        Example(i, f"{i}.jpg", write_jpeg(folder / f"{i}.jpg", seed=i, height=24, width=28), ("a cat",))
        for i in range(count)
    ]
    how: dict[str, Any] = {"batch_size": 4, "train": True, "seed": 7, "workers": 2, "seq_per_img": 1}
    return Loader(examples, VOCAB, SPEC, allocate=device.pinned_empty, **(how | options))


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("pycap")]


@pytest.fixture
def cpu() -> Iterator[None]:
    with backends.use("reference"):
        yield


def gpu_of(seed: int | None, monkeypatch: pytest.MonkeyPatch) -> LateCuda:
    """The current device is a GPU from now on."""
    module, cuda = cupy_standin.make(), LateCuda(seed)
    for name in ("Device", "runtime"):
        setattr(cuda, name, getattr(module.cuda, name))
    module.cuda = cuda
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(device, "missing_driver", lambda: "")
    monkeypatch.setattr(cupy_standin.ndarray, "set", set_on)
    device.set_device("cuda")
    return cuda


@pytest.fixture
def gpu(cpu: None, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> LateCuda:
    return gpu_of(getattr(request, "param", 0), monkeypatch)


def consume(cuda: LateCuda, items: Iterator[Fed]) -> list[tuple[Batch, np.ndarray]]:
    """The batches, and the images as a kernel on the current stream finds them whenever it comes to run."""
    seen: list[tuple[Batch, np.ndarray]] = []
    for item in items:
        read = np.empty(item.images.shape, np.uint8)
        cuda.default.launch(lambda to=read, images=item.images: to.__setitem__(..., images._host))
        seen.append((replace(item.batch, images=item.batch.images.copy()), read))
        assert isinstance(item.images, cupy_standin.ndarray)
        del item  # and with it the pinned memory, but for what the feed holds
    cuda.default.synchronize()
    return seen


def same(seen: list[tuple[Batch, np.ndarray]], expected: list[Batch]) -> bool:
    """The loader's batches in their order, on the device as on the host."""
    return len(seen) == len(expected) and all(
        (batch.image_ids, batch.epoch, batch.index) == (other.image_ids, other.epoch, other.index)
        and all(np.array_equal(a, b) for a, b in ((batch.crops, other.crops), (batch.tokens, other.tokens)))
        and np.array_equal(batch.images, other.images)
        and np.array_equal(read, other.images)
        for (batch, read), other in zip(seen, expected, strict=True)
    )


# -- on a GPU ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gpu", SEEDS, indirect=True)
def test_kernels_find_the_loaders_batches_whatever_is_done_when(gpu: LateCuda, tmp_path: Path) -> None:
    expected = make_loader(tmp_path, 27, workers=0)
    feed = Feed(make_loader(tmp_path, 27, cache_bytes=0))
    assert len(feed) == 7
    for epoch, start in ((0, 0), (1, 2), (2, 7)):
        seen = consume(gpu, feed.epoch(epoch, start))
        assert same(seen, list(expected.epoch(epoch, start))), (epoch, start)
    assert threads() == []


def test_the_fake_reuses_pinned_memory_and_poisons_it(gpu: LateCuda, tmp_path: Path) -> None:
    """Else the test above would not see a batch whose memory went before it was copied."""
    consume(gpu, Feed(make_loader(tmp_path, 43, workers=1, prefetch=1)).epoch(0))
    assert len(gpu.blocks) < 11
    assert all((block == POISON).all() for block in gpu.blocks)
    assert {block.nbytes for block in gpu.blocks} == {4 * 20 * 20 * 3}


def test_what_is_done_early_waits_for_nobody(gpu: LateCuda, tmp_path: Path) -> None:
    """One batch is copied while the one before is read, and no more: there are two buffers."""
    feed = Feed(make_loader(tmp_path, 43))
    places = set()
    items = feed.epoch(0)
    for item in items:
        places.add(device.address(item.images))
    assert len(places) == BUFFERS == 2


def test_images_stay_while_the_next_item_has_not_been_asked_for(gpu: LateCuda, tmp_path: Path) -> None:
    items = Feed(make_loader(tmp_path, 43)).epoch(0)
    for item in items:
        for _ in range(20):
            threading.Event().wait(0.001)
        gpu.default.synchronize()
        assert np.array_equal(item.images._host, item.batch.images)


@pytest.mark.parametrize("gpu", SEEDS, indirect=True)
def test_a_stream_that_is_named_is_the_one_that_waits_and_is_waited_for(gpu: LateCuda, tmp_path: Path) -> None:
    stream = gpu.Stream()
    feed = Feed(make_loader(tmp_path, 27), stream)
    seen = []
    for item in feed.epoch(0):
        read = np.empty(item.images.shape, np.uint8)
        stream.launch(lambda to=read, images=item.images: to.__setitem__(..., images._host))
        seen.append((item.batch, read))
    stream.synchronize()
    assert same(seen, list(make_loader(tmp_path, 27, workers=0).epoch(0)))


@pytest.mark.parametrize("gpu", SEEDS, indirect=True)
@pytest.mark.parametrize("taken", [1, 2, 5])
def test_closing_early_ends_threads_and_copies_and_the_next_epoch_is_whole(
    gpu: LateCuda, tmp_path: Path, taken: int
) -> None:
    feed = Feed(make_loader(tmp_path, 27))
    items = feed.epoch(0)
    held = []
    for _ in range(taken):
        item = next(items)
        read = np.empty(item.images.shape, np.uint8)
        gpu.default.launch(lambda to=read, images=item.images: to.__setitem__(..., images._host))
        held.append((item.batch, read))
    items.close()
    assert threads() == []
    assert same(consume(gpu, feed.epoch(1)), list(make_loader(tmp_path, 27).epoch(1)))
    assert same(held, list(make_loader(tmp_path, 27).epoch(0))[:taken])


def test_closing_drops_what_is_being_made(gpu: LateCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader, closing, made = make_loader(tmp_path, 27), threading.Event(), []
    batches = list(make_loader(tmp_path, 27, workers=0).epoch(0))

    def slow(epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        for batch in batches:
            made.append(batch.index)
            if batch.index == 1:
                assert closing.wait(10)
            yield batch

    monkeypatch.setattr(loader, "epoch", slow)
    items = Feed(loader).epoch(0)
    next(items)
    threading.Timer(0.2, closing.set).start()
    items.close()
    assert made == [0, 1] and threads() == []


def test_closing_before_the_first_batch_starts_nothing(gpu: LateCuda, tmp_path: Path) -> None:
    items = Feed(make_loader(tmp_path)).epoch(0)
    items.close()
    assert threads() == [] and gpu.blocks == []


def test_ctrl_c_in_the_loop_ends_the_threads(gpu: LateCuda, tmp_path: Path) -> None:
    items = Feed(make_loader(tmp_path, 27)).epoch(0)
    with pytest.raises(KeyboardInterrupt):
        try:
            for _ in items:
                raise KeyboardInterrupt
        finally:
            items.close()
    assert threads() == []


def test_no_more_pinned_memory_is_told_with_the_remedy(
    gpu: LateCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(nbytes: int) -> None:
        raise gpu.runtime.CUDARuntimeError("cudaErrorMemoryAllocation: out of memory")  # type: ignore[attr-defined]

    monkeypatch.setattr(gpu, "alloc_pinned_memory", refuse)
    with pytest.raises(device.DeviceError, match=r"pinned host memory cannot be had .*out of memory.*--workers"):
        list(Feed(make_loader(tmp_path)).epoch(0))
    assert threads() == []


def test_the_common_standin_serves_too(cpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On which whole runs are tested: the names that the feed uses are those that the stand-in holds against CuPy's."""
    monkeypatch.setitem(sys.modules, "cupy", cupy_standin.make())
    monkeypatch.setattr(device, "missing_driver", lambda: "")
    device.set_device("cuda")
    expected = list(make_loader(tmp_path, 27, workers=0).epoch(0))
    feed = Feed(make_loader(tmp_path, 27))
    seen = [(item.batch, item.images.get()) for item in feed.epoch(0)]
    assert same(seen, expected)
    stall = feed.stall()
    assert (stall.steps, stall.images) == (6, 23) and 0 <= stall.seconds <= stall.of_seconds


# -- on either --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["cpu", "gpu"])
def either(cpu: None, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "gpu":
        gpu_of(3, monkeypatch)


def test_the_loaders_errors_come_through_after_the_batches_before_them(
    either: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = make_loader(tmp_path, 27)
    make = loader._make

    def broken(plan: Any, epoch: int, index: int) -> Any:
        if index == 3:
            raise RuntimeError("a bug")
        return make(plan, epoch, index)

    monkeypatch.setattr(loader, "_make", broken)
    seen = []
    with pytest.raises(RuntimeError, match="a bug"):
        seen.extend(item.batch.index for item in Feed(loader).epoch(0))
    assert threads() == []
    with pytest.raises(DataError, match="epoch -1"):
        Feed(loader).epoch(-1)


def test_batches_before_an_error_are_not_lost(either: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = make_loader(tmp_path, 27)

    def ends(epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        yield from list(make_loader(tmp_path, 27, workers=0).epoch(epoch))[:5]
        raise DataError("no more")

    monkeypatch.setattr(loader, "epoch", ends)
    seen = []
    with pytest.raises(DataError, match="no more"):
        for item in Feed(loader).epoch(0):
            seen.append(item.batch.index)
    assert seen == [0, 1, 2, 3, 4]


def test_a_batch_that_grows_after_unreadable_images_fits(either: None, tmp_path: Path) -> None:
    loader = make_loader(tmp_path, 10, train=False)
    for image in (0, 1, 2):
        truncate(loader.examples[image].path, 0.9)
    sizes = [(len(item.batch), item.images.shape) for item in Feed(loader).epoch(0)]
    assert sizes == [(1, (1, 20, 20, 3)), (4, (4, 20, 20, 3)), (2, (2, 20, 20, 3))]


def test_on_the_cpu_batches_pass_as_they_are(cpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = make_loader(tmp_path)
    batches = list(loader.epoch(0))
    monkeypatch.setattr(loader, "epoch", lambda epoch, start_batch: (batch for batch in batches))
    items = list(Feed(loader).epoch(0))
    assert len(items) == 3
    for item, batch in zip(items, batches, strict=True):
        assert item.batch is batch and item.images is batch.images
    assert threads() == []


# -- how long was waited ----------------------------------------------------------------------------------------------


class Scripted:
    """A clock that goes on by what the test says; `known`: up to when the device is known to have come."""

    def __init__(self) -> None:
        self.now, self.known = 0.0, np.inf

    def mark(self) -> float:
        return self.now

    def between(self, first: float, last: float) -> float | None:
        return last - first if last <= self.known else None


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    made = Scripted()
    monkeypatch.setattr(feeding.time, "perf_counter", lambda: made.now)
    return made


def run_steps(meter: feeding._Meter, clock: Scripted, steps: list[tuple[float, float]]) -> None:
    """steps: seconds waited for images, seconds of the step; each of 4 images."""
    meter.start()
    for wait, work in steps:
        meter.asked()
        clock.now += wait
        meter.fed(4)
        clock.now += work
    meter.asked()


def test_waiting_is_added_up_and_an_epochs_first_step_apart(clock: Scripted) -> None:
    meter = feeding._Meter(clock)
    run_steps(meter, clock, [(100, 1), (1, 3), (0, 4), (2, 2)])
    assert meter.read() == Stall(3.0, 12.0, 3, 12, starting=100.0)
    assert meter.read() == Stall() and Stall().share == 0
    clock.now += 1000  # a validation
    run_steps(meter, clock, [(50, 1), (1, 1)])
    run_steps(meter, clock, [(20, 1), (1, 2)])
    assert meter.read() == Stall(2.0, 5.0, 2, 8, starting=70.0)


def test_what_the_device_has_not_come_to_is_counted_later_and_whole(clock: Scripted) -> None:
    meter = feeding._Meter(clock)
    clock.known = 5.5
    run_steps(meter, clock, [(0, 1), (1, 3), (2, 2), (1, 3)])  # waits end at 2, 7 and 10
    assert meter.read() == Stall(1.0, 4.0, 1, 4)
    clock.known = 7.0
    assert meter.read() == Stall(2.0, 4.0, 1, 4)
    clock.known = np.inf
    assert meter.read() == Stall(1.0, 4.0, 1, 4)


def test_a_gpus_wait_for_a_copy_counts_and_its_steps_do_not(
    cpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = gpu_of(None, monkeypatch)

    def takes(milliseconds: float) -> Any:
        return lambda: setattr(cuda, "now", cuda.now + milliseconds)

    def slow_copy(array: Any, source: np.ndarray, stream: Any) -> None:
        set_on(array, source, stream)
        stream.launch(takes(3))

    monkeypatch.setattr(cupy_standin.ndarray, "set", slow_copy)
    feed = Feed(make_loader(tmp_path, 8))
    items = feed.epoch(0)
    for _ in range(2):
        next(items)
        cuda.default.launch(takes(50))
    assert cuda.now == 0
    cuda.default.synchronize()  # copy, step, copy, step: each as late as it may
    assert cuda.now == 106
    assert next(items, None) is None
    stall = feed.stall()
    assert (stall.steps, stall.images) == (1, 4) and stall.seconds == pytest.approx(0.003)


def test_the_device_is_not_waited_for_to_tell_how_long_it_waited(
    cpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = gpu_of(None, monkeypatch)
    feed = Feed(make_loader(tmp_path, 8))
    way, reached = feed._way, []
    cuda.default.launch(lambda: reached.append(True))
    asked, fed = way.mark(), way.mark()
    assert way.between(asked, fed) is None and not reached
    cuda.default.synchronize()
    assert way.between(asked, fed) == 0


def test_sentences(cpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "cpu_count", lambda: 16)
    feed = Feed(make_loader(tmp_path, workers=3))
    assert feed.sentence(Stall()) == "training waited 0.0 % of the time for images"
    assert feed.sentence(Stall(0.02, 1.0, 10, 640)) == "training waited 2.0 % of the time for images"
    slow = Stall(0.25, 1.0, 10, 400)
    told = "training waited 25.0 % of the time for images (decoding gives 400 images/s"
    assert feed.sentence(slow) == (
        f"{told} with 3 threads, a step takes 75 ms): more --workers, or a --store of resized images"
    )
    feed.loader.workers = 16
    assert feed.sentence(slow).endswith("with 16 threads, a step takes 75 ms): a --store of resized images")
    feed.loader.workers = 0
    assert "images/s without threads, a step" in feed.sentence(slow)
    feed.loader.store, feed.loader.workers = object(), 16  # type: ignore[assignment]
    assert feed.sentence(slow).endswith("more CPUs than these 16, or a smaller --resize")
    gpu_of(0, monkeypatch)
    assert feed.sentence(slow).startswith("the GPU waited 25.0 % of the time for images (decoding")
