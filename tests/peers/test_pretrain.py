"""Steps of the classifier against PyTorch: a VGG with a linear layer, cross-entropy, SGD with momentum and weight decay."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; make test PEERS=1 installs it")
from torch import nn
from torch.nn import functional

from pycap.captioner import build_classifier
from pycap.config import TrainConfig
from pycap.data.images import PreprocessSpec
from pycap.data.loader import Batch
from pycap.training.trainer import Trainer
from tests.peers.test_models import nchw, parametrised, torch_vgg

pytestmark = pytest.mark.peers

VOCABULARY, IMAGES, STEPS = 15, 6, 8
SPEC = PreprocessSpec(resize=36, crop=32)


def batches() -> list[Batch]:
    rng = np.random.default_rng(31)
    made = []
    for index in range(STEPS):
        classes = rng.integers(4, VOCABULARY, IMAGES)
        tokens = np.stack([np.full(IMAGES, 1), classes, np.full(IMAGES, 2)]).astype(np.int32)
        images = rng.integers(0, 256, (IMAGES, 36, 36, 3)).astype(np.uint8)
        crops = rng.integers(0, (5, 5, 2), (IMAGES, 3)).astype(np.int32)
        made.append(Batch(images, crops, tokens, (), (), (), 0, index))
    return made


def pixels(batch: Batch) -> np.ndarray:
    """float32 [B,32,32,3]: cropped, mirrored, normalised."""
    windows = []
    for image, (top, left, flip) in zip(batch.images, batch.crops.tolist(), strict=True):
        window = image[top : top + 32, left : left + 32]
        windows.append(window[:, ::-1] if flip else window)
    return ((np.stack(windows) - np.array(SPEC.mean)) / np.array(SPEC.std)).astype(np.float32)


def peer_of(arrays: dict[str, np.ndarray]) -> nn.Sequential:
    """The same net in PyTorch; vgg_micro at a quarter of its width ends in maps of 2 x 2 x 16."""
    features, dense = torch_vgg([8, "M", 8, "M", 16, "M", 16, "M"], 2, 20)
    peer = nn.Sequential(features, nn.Flatten(), dense, nn.Linear(20, VOCABULARY))
    layers = [*parametrised(features, dense), peer[3]]
    names = ["cnn.conv1_1", "cnn.conv2_1", "cnn.conv3_1", "cnn.conv4_1", "cnn.fc6", "cnn.fc7", "head"]
    with torch.no_grad():
        for layer, name in zip(layers, names, strict=True):
            weight = torch.tensor(arrays[f"{name}.weight"])
            if weight.ndim == 4:
                weight = weight.permute(0, 3, 1, 2)
            elif name == "cnn.fc6":  # ours reads the map in the order H, W, C
                weight = weight.view(20, 2, 2, 16).permute(0, 3, 1, 2).flatten(1)
            layer.weight.copy_(weight)
            layer.bias.copy_(torch.tensor(arrays[f"{name}.bias"]))
    return peer


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("micro_batch", [0, 4])
def test_eight_steps_of_sgd(micro_batch: int) -> None:
    config = TrainConfig(
        stage="pretrain", cnn="vgg_micro", cnn_width=0.25, fc_size=20, image_size=32, resize=36, drop_prob_cnn=0.0,
        batch_size=IMAGES, seq_per_img=1, max_length=1, optimizer="sgd", momentum=0.9, weight_decay=5e-4, learning_rate=1e-2,
        micro_batch=micro_batch,
    ).validate()  # fmt: skip
    model = build_classifier(config, VOCABULARY)
    peer = peer_of(model.state_arrays())
    optimizer = torch.optim.SGD(peer.parameters(), 1e-2, momentum=0.9, weight_decay=5e-4)
    trainer = Trainer(model, config, SPEC, STEPS)
    trainer.begin_epoch(0)
    ours, theirs = [], []
    for batch in batches():
        ours.append(trainer.step(batch).loss)
        loss = functional.cross_entropy(peer(nchw(pixels(batch))), torch.from_numpy(batch.tokens[1]).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        theirs.append(loss.item())
    assert ours == pytest.approx(theirs, rel=1e-4) and max(theirs) - min(theirs) > 0.1
    head = peer[3].weight.detach().numpy()
    assert np.linalg.norm(model.head.weight.data - head) < 1e-4 * np.linalg.norm(head)
