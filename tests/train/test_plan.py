"""What a run needs of a GPU's memory: counted by hand, and held against what a step asks for when it runs."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from pycap import arena, backends, device, ops
from pycap.backends.dry import dry_run
from pycap.captioner import build_model
from pycap.config import ConfigError, TrainConfig
from pycap.data.loader import Batch
from pycap.models.vgg import BLOCKS
from pycap.nn.layers import place_dropout
from pycap.training import plan
from pycap.training.sources import preprocess_spec
from pycap.training.trainer import Trainer, _optimizer
from tests import cupy_standin
from tests.train.runs import tiny

VOCABULARY = 10_000
COCO = TrainConfig(batch_size=64, precision="bf16", max_length=16)


def stored_maps(config: TrainConfig, images: int) -> int:
    """Bytes that VGG and the language model keep for backward: each layer's output, winners of pools, the LSTM's gates."""
    wide = 2 if config.precision == "bf16" else 4
    side, total = config.image_size, 0
    for block in BLOCKS[config.cnn]:
        total += sum(images * side * side * channels * wide for channels in block[:-1])
        side //= 2
        total += images * side * side * (block[-1] * wide + block[-1] // 4)
    total += images * 4 * config.fc_size * wide  # fc6, fc7 and their dropouts
    captions, length, hidden = images * config.seq_per_img, config.max_length + 2, config.rnn_size
    total += length * captions * (config.input_encoding_size + 6 * hidden) * 4  # inputs, h, c, gates
    total += (length - 1) * captions * (hidden + VOCABULARY) * 4  # the dropout after the LSTM, and the logits' gradient
    return total


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_what_backward_finds_stored_is_what_one_counts_by_hand(precision):
    config = dataclasses.replace(COCO, precision=precision)
    with dry_run("sm_90"):
        model = build_model(config, VOCABULARY, draw=False)
        arena.prepare_gradients(model.named_parameters().values())
        place_dropout(model, 1, 0, 64, 64)
        with arena.trace() as seen:
            raw, crops = np.empty((64, 256, 256, 3), np.uint8), np.zeros((64, 3), np.int32)
            pixels = ops.pixels(raw, crops, 224, (0, 0, 0), (1, 1, 1), device.activation_dtype(precision))
            loss = model.loss(pixels, np.full((18, 320), 3, np.int32))
            stored = seen.live
            loss.backward()
    counted = stored_maps(config, 64)
    assert counted <= stored <= 1.03 * counted
    layout = arena.plan(seen)
    layout.check()
    assert stored <= layout.bound <= layout.nbytes <= 1.2 * layout.bound
    assert layout.nbytes <= plan.plan(config, VOCABULARY).activations <= 1.03 * layout.nbytes


def test_a_plan_adds_up_what_is_kept():
    planned = plan.plan(COCO, VOCABULARY)
    with device.use("cpu"):
        parameters = build_model(COCO, VOCABULARY, draw=False).named_parameters()
    count = sum(tensor.data.size for tensor in parameters.values())
    assert count > 145_000_000 and (planned.weights, planned.gradients, planned.optimizer) == (
        4 * count, 4 * count, 8 * count,
    )  # fmt: skip
    matrices = sum(t.data.size for n, t in parameters.items() if n.endswith("weight") and n[:3] in ("cnn", "ima"))
    assert planned.copies == 2 * matrices
    assert planned.inputs == 3 * (64 * 256 * 256 * 3 + 64 * 5 * 18 * 21)
    assert planned.total == sum(planned.parts.values()) and 4 << 30 < planned.total < 6 << 30
    assert planned.validation > 64 * 224 * 224 * 64 * 2  # the first map and what follows, but no stored ones
    assert planned.validation < planned.activations / 2
    many = plan.plan(dataclasses.replace(COCO, batch_size=300), VOCABULARY)
    assert many.workspace < 2 * 25088 * 4096  # fc6 is not rounded in each step: there are copies
    # The largest scratch: splits of a weight gradient's sum. A rounded number, so that it may change with the kernels.
    assert 10 << 20 < planned.workspace < 1 << 30


@pytest.mark.parametrize(
    ("options", "slots", "of_cnn"),
    [
        ({}, 2, 2), ({"optimizer": "sgd"}, 1, 1), ({"optimizer": "rmsprop", "cnn_optimizer": "adam"}, 1, 2),
        ({"freeze_cnn": True}, 2, None),
    ],
)  # fmt: skip
def test_the_optimisers_state_is_what_the_trainer_keeps(options, slots, of_cnn, tmp_path):
    config = tiny(tmp_path, tmp_path, **options)
    planned = plan.plan(config, 50)
    model = build_model(config, 50)
    model.cnn.freeze(config.freeze_cnn)
    optimizer = _optimizer(model, config)
    for tensor in model.named_parameters().values():
        if tensor.requires_grad:
            tensor.grad, tensor.fresh = np.zeros_like(tensor.data), True
    optimizer.step()
    kept = {n: a.nbytes for n, a in optimizer.state_arrays().items() if not n.endswith(".step")}
    assert planned.optimizer == sum(kept.values())
    sizes = {True: 0, False: 0}
    for name, tensor in model.named_parameters().items():
        sizes[name.startswith("cnn.")] += tensor.data.nbytes
    assert planned.optimizer == slots * sizes[False] + (of_cnn or 0) * sizes[True]
    assert planned.gradients == sizes[False] + (sizes[True] if of_cnn else 0)


def test_a_frozen_cnn_stores_nothing_and_words_are_learned_in_the_same_arena():
    joint, frozen = plan.plan(COCO, VOCABULARY), plan.plan(dataclasses.replace(COCO, freeze_cnn=True), VOCABULARY)
    first_maps = 64 * 224 * 224 * 64 * 2 * 5 // 4  # the first convolution's, and what its pool leaves
    assert first_maps < frozen.activations < 0.4 * joint.activations
    words = plan.plan(dataclasses.replace(COCO, pretrain_words=3), VOCABULARY)
    assert words.activations >= joint.activations and words.weights == joint.weights + 4 * VOCABULARY * 4097
    sizes = {"image_size": 32, "resize": 32, "fc_size": 4096, "rnn_size": 16, "input_encoding_size": 16}
    small = TrainConfig(batch_size=8, cnn="vgg_micro", max_length=30, **sizes)
    said = 8 * 5 * 31 * (4096 + VOCABULARY) * 4  # an image's vector and the logits' gradient for each word
    assert plan.plan(dataclasses.replace(small, pretrain_words=3), VOCABULARY).activations > said
    assert plan.plan(small, VOCABULARY).activations < said


@pytest.mark.parametrize("config", [COCO, dataclasses.replace(COCO, cnn="vgg_micro", image_size=64, resize=64)])
def test_shorter_captions_and_smaller_batches_fit_where_the_longest_do(config):
    largest = plan.plan(config, VOCABULARY).activations
    for changes in ({"max_length": 1}, {"max_length": 9}, {"max_length": 15}, {"batch_size": 63}, {"seq_per_img": 4}):
        assert plan.plan(dataclasses.replace(config, **changes), VOCABULARY).activations <= largest


def test_the_largest_micro_batch_that_fits_is_taken():
    config = dataclasses.replace(COCO, batch_size=100, precision="fp32")
    whole = plan.plan(config, VOCABULARY)
    assert plan.fit(config, VOCABULARY, whole.total) == whole and whole.micro_batch == 100
    by_passes = {
        passes: plan.plan(dataclasses.replace(config, micro_batch=-(-100 // passes)), VOCABULARY)
        for passes in range(1, 8)
    }
    for passes in range(1, 7):
        available = by_passes[passes].total - 1
        found = plan.fit(config, VOCABULARY, available)
        assert found == by_passes[passes + 1] and found.total <= available
        assert found.summary().endswith(f"; micro-batch {-(-100 // (passes + 1))}, {passes + 1} passes a step")
        assert found.validation < whole.validation and found.activations < whole.activations
    asked = dataclasses.replace(config, micro_batch=30)
    assert plan.fit(asked, VOCABULARY, whole.total).micro_batch == 30
    assert plan.fit(asked, VOCABULARY, by_passes[4].total - 1).micro_batch == 20


def test_what_never_fits_is_an_error_with_the_numbers_and_remedies():
    with pytest.raises(
        ConfigError, match=r"does not fit into 0\.5 GiB: even with one image a pass it needs .*--precision bf16"
    ):
        plan.fit(dataclasses.replace(COCO, precision="fp32"), VOCABULARY, 1 << 29)
    with pytest.raises(ConfigError, match=r"micro-batch 1, 64 passes a step; what would help: a GPU with more memory$"):
        plan.fit(
            dataclasses.replace(COCO, freeze_cnn=True, optimizer="sgd", image_size=128, resize=128), VOCABULARY, 1 << 20
        )


def test_the_summary_is_one_line_of_what_counts():
    parts = dict.fromkeys([f.name for f in dataclasses.fields(plan.MemoryPlan)], 0)
    made = plan.MemoryPlan(**parts | {"batch_size": 6, "micro_batch": 6, "weights": 2 << 30, "activations": 3 << 29})
    assert made.summary() == "needs 3.5 GiB on the GPU: weights 2.0, activations 1.5"
    small = dataclasses.replace(made, weights=1000, activations=0, micro_batch=4)
    assert small.summary() == "needs 0.0 GiB on the GPU; micro-batch 4, 2 passes a step"


def _kib(name: str) -> int:
    """A figure of this process's memory."""
    found = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1])


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_a_large_plan_takes_next_to_no_memory():
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _kib("VmRSS")
    assert plan.plan(dataclasses.replace(COCO, batch_size=512, precision="fp32"), VOCABULARY).total > 20 << 30
    assert _kib("VmHWM") - before < 700 << 10


def test_what_was_selected_stays_so(tmp_path: Path):
    with backends.use("cpp"):
        before, products = dict(backends.kernels.__dict__), backends.float32_products()
        plan.plan(tiny(tmp_path, tmp_path, precision="tf32"), 50)
        assert backends.kernels.__dict__ == before and backends.float32_products() == products


@pytest.mark.parametrize(
    "options",
    [{}, {"precision": "bf16", "micro_batch": 3}, {"freeze_cnn": True}, {"pretrain_words": 1, "max_length": 30}],
    ids=["joint", "passes", "frozen", "words"],
)
def test_a_steps_arena_is_as_large_as_planned(options, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", cupy_standin.make())
    monkeypatch.setattr(device, "missing_driver", lambda: "")
    config = tiny(tmp_path, tmp_path, **options)
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 50, (config.max_length + 2, 8 * config.seq_per_img)).astype(np.int32)
    images = rng.integers(0, 256, (8, 64, 64, 3)).astype(np.uint8)
    files = tuple(str(number) for number in range(8))
    batch = Batch(images, np.zeros((8, 3), np.int32), tokens, tuple(range(8)), files, (None,) * 8, 0, 0)  # type: ignore[arg-type]
    with backends.use("reference", "cuda"):
        planned = plan.plan(config, 50)
        trainer = Trainer(build_model(config, 50), config, preprocess_spec(config), 1, resident=True)
        for epoch in range(config.pretrain_words + 1):
            trainer.begin_epoch(epoch)
            trainer.step(batch)
        made = trainer._device_step
    assert made is not None and 0.9 * planned.activations <= made.arena_bytes <= planned.activations
    assert sum(copy.nbytes for copy in made.copies.values()) == planned.copies


def test_where_a_gpu_was_selected_the_plan_is_for_it(tmp_path, monkeypatch):
    module = cupy_standin.make()
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(device, "missing_driver", lambda: "")
    module.cuda.runtime.memGetInfo = lambda: (5 << 30, 8 << 30)
    config = tiny(tmp_path, tmp_path)
    h100 = plan.plan(config, 50)
    with backends.use("reference", "cuda"):
        own = plan.plan(config, 50)
        assert plan.available_bytes() == (5 << 30) + 4096 - plan.MARGIN and device.current() == "cuda"
    assert own.workspace == 0 < h100.workspace and own.weights == h100.weights
    assert own.activations > 0  # the reference has no fusions, so it differs from the other's
