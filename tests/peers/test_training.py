"""Ten joint training steps give the same losses and weights as the same steps in PyTorch; so do the update rules alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; make test PEERS=1 installs it")

from benchmarks.peers import torch_nic
from pycap import optim
from pycap.autograd import Tensor
from pycap.captioner import build_model
from pycap.config import TrainConfig
from pycap.data.images import PreprocessSpec
from pycap.data.loader import Batch
from pycap.data.vocab import END, START, UNK
from pycap.training.trainer import StepResult, Trainer
from tests.peers.compare import close, normal

pytestmark = pytest.mark.peers
on_each_backend = pytest.mark.usefixtures("backend")

STEPS = 10
VOCABULARY = 31
SPEC = PreprocessSpec(resize=36, crop=32)
# A pre-activation within rounding of zero, or two nearly equal values in a pooling window, may be decided differently here
# and there, and Adam makes a full step of even a small gradient. At the CNN's rate that the recipes advise (1e-4), one such
# element does not reach the tolerance.
SMALL = TrainConfig(
    cnn="vgg_micro",
    cnn_width=0.25,
    fc_size=24,
    image_size=32,
    resize=36,
    rnn_size=24,
    input_encoding_size=20,
    drop_prob_lm=0.0,
    drop_prob_cnn=0.0,
    batch_size=6,
    seq_per_img=3,
    optimizer="adam",
    learning_rate=1e-3,
    cnn_learning_rate=1e-4,
    epochs=5,
)


def batches() -> list[Batch]:
    """Ten batches of random images, crops, flips and captions (lengths of 1 to 9 words)."""
    rng = np.random.default_rng(21)
    made = []
    for index in range(STEPS):
        images = rng.integers(0, 256, (6, 36, 36, 3)).astype(np.uint8)
        crops = rng.integers(0, (5, 5, 2), (6, 3)).astype(np.int32)
        tokens = np.zeros((11, 18), np.int32)
        for column in range(18):
            words = rng.integers(UNK, VOCABULARY, rng.integers(1, 10))
            tokens[: len(words) + 2, column] = [START, *words, END]
        made.append(Batch(images, crops, tokens, (), (), (), 0, index))
    return made


@dataclass
class Run:
    """What both sides came to from the same weights: a loss and a step's result for each step, and the last weights."""

    results: list[StepResult]
    peer_losses: list[float]
    start: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]
    peer_weights: dict[str, np.ndarray]
    largest_gradient: float

    def check(self) -> None:
        """Losses and weights agree to 1e-4: weights by the norm of the difference over the norm of the array."""
        losses = [result.loss for result in self.results]
        assert losses == pytest.approx(self.peer_losses, rel=1e-4)
        assert self.weights.keys() == self.peer_weights.keys()
        for name, weight in self.weights.items():
            off = distance(weight, self.peer_weights[name])
            assert off < 1e-4, f"{name} differs by {off:.3g} of its norm"


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def train_both(config: TrainConfig, peer_config: TrainConfig | None = None) -> Run:
    """Ten steps of each side, four an epoch. peer_config: another config for PyTorch, to see that it shows."""
    ours = build_model(config, VOCABULARY)
    rng = np.random.default_rng(22)
    for parameter in ours.named_parameters().values():
        if parameter.data.ndim == 1:  # a relative error says little of a bias that has only just left zero
            parameter.data += (rng.standard_normal(parameter.shape) * 0.1).astype(np.float32)
    peer = torch_nic.build(config, VOCABULARY)
    torch_nic.load_arrays(peer, ours.state_arrays())
    start = {name: array.copy() for name, array in ours.state_arrays().items()}
    trainer = Trainer(ours, config, SPEC, 4)
    peer_trainer = torch_nic.PeerTrainer(peer, peer_config or config, SPEC, 4, torch_nic.Variant())
    results, peer_losses = [], []
    for i, batch in enumerate(batches()):
        if i % 4 == 0:
            trainer.begin_epoch(i // 4)
            peer_trainer.begin_epoch(i // 4)
        results.append(trainer.step(batch))
        peer_losses.append(peer_trainer.step(batch))
    weights = ours.state_arrays()
    largest = max(float(np.abs(t.grad).max()) for t in ours.named_parameters().values() if t.grad is not None)
    return Run(results, peer_losses, start, weights, torch_nic.state_arrays(peer, weights), largest)


SGD = {"optimizer": "sgd", "learning_rate": 0.1, "cnn_learning_rate": 0.05}


@on_each_backend
@pytest.mark.parametrize("micro_batch", [0, 2, 4], ids=["whole", "micro_batches", "uneven_micro_batches"])
def test_ten_joint_steps_of_adam(micro_batch: int) -> None:
    run = train_both(replace(SMALL, micro_batch=micro_batch))
    run.check()
    for name, before in run.start.items():
        assert distance(run.weights[name], before) > 2e-4, f"{name} hardly moved: agreeing would mean little"


@on_each_backend
@pytest.mark.parametrize("micro_batch", [0, 3], ids=["whole", "micro_batches"])
def test_ten_joint_steps_with_clipped_norms(micro_batch: int) -> None:
    """With SGD: Adam's steps do not depend on the scale of gradients, so a wrong clip would not show."""
    clips = {"cnn": 0.003, "lm": 0.05}
    options = {**SGD, "grad_clip_mode": "norm", "grad_clip": clips["lm"], "cnn_grad_clip": clips["cnn"]}
    run = train_both(replace(SMALL, **options, micro_batch=micro_batch))
    assert all(result.norms[group] > clip for result in run.results for group, clip in clips.items())
    run.check()


@on_each_backend
def test_ten_joint_steps_with_clipped_values() -> None:
    run = train_both(replace(SMALL, **SGD, grad_clip=1e-3))
    assert run.largest_gradient > 2e-3, "nothing would be clipped"
    run.check()


CONFIGS: dict[str, dict[str, Any]] = {
    "weight_decay": {"weight_decay": 0.01, "cnn_weight_decay": 0.1},
    "cosine_with_warmup": {"lr_schedule": "cosine", "warmup_steps": 3},
    "step_decay": {"lr_schedule": "step", "lr_decay_rate": 0.3},
    "rmsprop": {"optimizer": "rmsprop", "learning_rate": 3e-4},
    "sgd": SGD,
    "sgd_for_the_cnn": {"cnn_optimizer": "sgd", "cnn_learning_rate": 0.05},
    "frozen_cnn": {"freeze_cnn": True},
    "cnn_joins_late": {"finetune_cnn_after": 1},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_ten_steps_of_other_configurations(name: str) -> None:
    run = train_both(replace(SMALL, **CONFIGS[name]).validate())
    run.check()
    if name == "frozen_cnn":
        assert all(np.array_equal(run.weights[n], a) for n, a in run.start.items() if n.startswith("cnn."))


@pytest.mark.parametrize("change", [{"learning_rate": 1.02e-3}, {"beta2": 0.99}, {"weight_decay": 1e-3}])
def test_the_comparison_notices_a_small_difference(change: dict[str, Any]) -> None:
    run = train_both(SMALL, replace(SMALL, **change))
    with pytest.raises(AssertionError):
        run.check()


# The update rules alone -----------------------------------------------------------------------------------------------

# name: (our rule, PyTorch's, PyTorch's settings)
RULES: dict[str, tuple[Callable[..., optim.Optimizer], Any, dict[str, Any]]] = {
    "sgd": (lambda groups: optim.SGD(groups, 0.0), torch.optim.SGD, {}),
    "sgd_momentum": (lambda groups: optim.SGD(groups, 0.9), torch.optim.SGD, {"momentum": 0.9}),
    "rmsprop": (lambda groups: optim.RMSprop(groups, 0.95, 1e-6), torch.optim.RMSprop, {"alpha": 0.95, "eps": 1e-6}),
    "adam": (lambda groups: optim.Adam(groups, 0.8, 0.99, 1e-7), torch.optim.Adam, {"betas": (0.8, 0.99), "eps": 1e-7}),
}


@on_each_backend
@pytest.mark.parametrize("clip", ["", "norm", "value"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("rule", RULES)
def test_update_rule(rule: str, decay: float, clip: str) -> None:
    """Five steps on arrays of odd sizes, gradients of scale 3 (so that clipping at 1 acts), rates that change."""
    rng = np.random.default_rng(23)
    shapes = [(17, 33), (5,), (3, 3, 3, 7), (1009,)]
    start = [normal(rng, *shape) for shape in shapes]
    gradients = [[normal(rng, *shape, scale=3) for shape in shapes] for _ in range(5)]
    rates = [0.01, 0.02, 0.005, 0.01, 0.03]
    tensors = {str(i): Tensor(array.copy(), True) for i, array in enumerate(start)}
    group = optim.ParamGroup("all", tensors, 0.01, decay, 1.0 if clip else 0.0, clip or "value")
    make, peer_rule, settings = RULES[rule]
    optimizer = make([group])
    for step, rate in zip(gradients, rates, strict=True):
        for tensor, gradient in zip(tensors.values(), step, strict=True):
            tensor.grad, tensor.fresh = gradient.copy(), True
        group.lr = rate
        optimizer.step()

    def peer(dtype: Any) -> list[Any]:
        parameters = [torch.nn.Parameter(torch.tensor(array, dtype=dtype)) for array in start]
        optimizer = peer_rule(parameters, lr=0.01, weight_decay=decay, **settings)
        for step, rate in zip(gradients, rates, strict=True):
            for parameter, gradient in zip(parameters, step, strict=True):
                parameter.grad = torch.tensor(gradient, dtype=dtype)
            if clip == "norm":
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            elif clip == "value":
                torch.nn.utils.clip_grad_value_(parameters, 1.0)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
        return [parameter.detach() for parameter in parameters]

    for name, ours, single, exact in zip(
        tensors, tensors.values(), peer(torch.float32), peer(torch.float64), strict=True
    ):
        close(f"parameter {name}", ours.data, single, exact, slack=1e-6)  # clip_grad_norm_ divides by norm + 1e-6
