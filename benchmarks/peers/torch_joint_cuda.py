"""The peer's training step as one writes it for a GPU: AMP, channels_last, cuDNN's LSTM, fused Adam, torch.compile."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence

from benchmarks.peers import torch_nic
from benchmarks.peers.torch_model import NIC
from pycap.config import TrainConfig
from pycap.data.images import PreprocessSpec
from pycap.data.loader import Batch
from pycap.data.vocab import PAD


@dataclass(frozen=True)
class Way:
    """Choices that change the speed and not the result.

    lstm: "autocast" (in bfloat16 under AMP), "float32", or "packed" (autocast over the captions' own lengths). compact:
    padding is dropped before the projection, else cross_entropy ignores it. mode: torch.compile's, "" is eager.
    """

    lstm: str = "autocast"
    compact: bool = True
    mode: str = ""

    def __str__(self) -> str:
        loss = "padding dropped" if self.compact or self.lstm == "packed" else "ignore_index"
        return ", ".join(filter(None, ("channels_last", f"LSTM {self.lstm}", loss, "fused Adam", self.mode)))


def ways(compiled: bool, precision: str, modes: tuple[str, ...] = ()) -> list[Way]:
    """What is tried. modes: of torch.compile. In float32 all LSTMs compute alike, so that one of them is left out."""
    lstms = ("autocast", "float32") if precision == "bf16" else ("autocast",)
    if compiled:  # a compiled graph stops at packed sequences
        return [Way(lstms[0], True, mode) for mode in modes]
    return [Way(lstm, compact) for lstm, compact in itertools.product(lstms, (True, False))] + [Way("packed")]


@dataclass
class Feed:
    """A batch in memory that the GPU copies from by itself.

    kept: which rows of the outputs have a target. lengths: of the captions, with what the image says first. share: 1 / targets.
    """

    images: Tensor
    crops: Tensor
    tokens: Tensor
    kept: Tensor
    lengths: Tensor
    share: Tensor

    @classmethod
    def of(cls, batch: Batch, device: torch.device, length: int = 0, rows: int = 0) -> Feed:
        """length, rows: steps to which tokens are padded, and rows to which `kept` is, with one whose target is padding."""
        tokens = np.pad(batch.tokens, ((0, max(length - len(batch.tokens), 0)), (0, 0)), constant_values=PAD)
        targets = tokens[1:] != PAD
        kept = np.flatnonzero(targets)
        kept = np.pad(kept, (0, max(rows - len(kept), 0)), constant_values=int(np.argmin(targets)))
        arrays = (
            batch.images,
            batch.crops.astype(np.int64),
            tokens.astype(np.int64),
            kept,
            targets.sum(0) + 1,
        )
        share = torch.tensor(1 / max(int(targets.sum()), 1), dtype=torch.float32)
        made = [*(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays), share]
        return cls(*(t.pin_memory() for t in made) if device.type == "cuda" else made)

    def on(self, device: torch.device) -> Feed:
        """On the device, without waiting; the lengths stay, cuDNN wants them on the host."""
        there = [t.to(device, non_blocking=True) for t in (self.images, self.crops, self.tokens, self.kept)]
        return Feed(*there, self.lengths, self.share.to(device, non_blocking=True))


class Loss(nn.Module):
    """From uint8 images and tokens to the mean cross-entropy a token, with the model's choices of a `Way`."""

    def __init__(self, model: NIC, spec: PreprocessSpec, precision: str, way: Way) -> None:
        super().__init__()
        self.model, self.spec, self.way = model, spec, way
        self.autocast = precision == "bf16"
        self.register_buffer("mean", torch.tensor(spec.mean))
        self.register_buffer("scale", 1 / torch.tensor(spec.std))

    def images(self, images: Tensor, crops: Tensor) -> Tensor:
        """Crop, flip, normalise on the device: [B,3,S,S], channels_last."""
        return crop_normalise(images, crops, self.spec.crop, self.mean, self.scale)

    def forward(self, feed: Feed) -> Tensor:
        kind = feed.images.device.type
        model, tokens = self.model, feed.tokens
        with torch.autocast(kind, torch.bfloat16) if self.autocast else nullcontext():
            vectors = model.image_embedding(model.cnn(self.images(feed.images, feed.crops)))
            first = vectors.repeat_interleave(tokens.shape[1] // vectors.shape[0], dim=0)
            inputs = torch.cat([first[None], model.word_embedding(tokens[:-1])])
            outputs, targets = self._sequence(inputs, tokens, feed)
            logits = model.projection(model.drop(outputs))
        return functional.cross_entropy(logits.float(), targets, ignore_index=PAD, reduction="sum") * feed.share

    def _sequence(self, inputs: Tensor, tokens: Tensor, feed: Feed) -> tuple[Tensor, Tensor]:
        """(The LSTM's outputs [M,H] after words, what should follow [M])."""
        captions = tokens.shape[1]
        if self.way.lstm == "packed":
            packed, _ = self.model.lstm(pack_padded_sequence(inputs, feed.lengths, enforce_sorted=False))
            following = pack_padded_sequence(tokens, feed.lengths, enforce_sorted=False).data
            return packed.data[captions:], following[captions:]  # the first step saw the image
        if self.way.lstm == "float32":
            with torch.autocast(inputs.device.type, enabled=False):
                h, _ = self.model.lstm(inputs.float())
        else:
            h, _ = self.model.lstm(inputs)
        outputs, targets = h[1:].flatten(0, 1), tokens[1:].flatten()
        if self.way.compact:  # the index comes from the host: a mask on the device would be waited for
            return outputs.index_select(0, feed.kept), targets.index_select(0, feed.kept)
        return outputs, targets


def crop_normalise(images: Tensor, crops: Tensor, size: int, mean: Tensor, scale: Tensor) -> Tensor:
    """uint8 [B,R,R,3] and (top, left, flip) int64 [B,3] on the device -> float32 [B,3,S,S], channels_last."""
    at = torch.arange(size, device=images.device)
    rows = crops[:, :1] + at
    columns = crops[:, 1:2] + torch.where(crops[:, 2:3] == 1, size - 1 - at, at)
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    window = images[batch, rows[:, :, None], columns[:, None, :]]
    return ((window.float() - mean) * scale).permute(0, 3, 1, 2)


class CudaTrainer(torch_nic.PeerTrainer):
    """PeerTrainer on a device, whose steps wait for nothing: `step` returns the loss as it lies there."""

    def __init__(
        self,
        model: NIC,
        config: TrainConfig,
        spec: PreprocessSpec,
        steps_per_epoch: int,
        way: Way,
        device: torch.device,
    ) -> None:
        super().__init__(model, config, spec, steps_per_epoch, torch_nic.Variant())
        self.device, self.way = device, way
        self.objective: Any = Loss(model, spec, config.precision, way).to(device)
        if way.mode:
            self.objective = torch.compile(self.objective, mode=None if way.mode == "default" else way.mode)

    def step(self, feed: Feed) -> Tensor:  # type: ignore[override]
        """One update; the loss of before it."""
        if self.way.mode:
            torch.compiler.cudagraph_mark_step_begin()
        loss = self.objective(feed.on(self.device))
        loss.backward()
        self._update()
        return loss.detach().clone()


def build(config: TrainConfig, vocabulary: int, arrays: dict[str, np.ndarray], device: torch.device) -> NIC:
    """The peer's model on the device with pycap's weights; PyTorch's own are never drawn."""
    with torch.device("meta"):
        model = torch_nic.build(config, vocabulary)
    model.to_empty(device=device)
    load(model, arrays)
    return model


def load(model: NIC, arrays: dict[str, np.ndarray]) -> None:
    """pycap's weights, and the bias that it has not."""
    torch_nic.load_arrays(model, arrays)
    with torch.no_grad():
        model.lstm.bias_hh_l0.zero_()


def set_up(precision: str) -> None:
    """cuDNN tries its algorithms; float32 is multiplied as `--precision` says, and in full beside bf16."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = True
