"""The peer's training: PyTorch's captioner with pycap's weights, and its training step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.peers.torch_model import NIC, VGG
from pycap.config import TrainConfig
from pycap.data.images import PreprocessSpec
from pycap.data.loader import Batch
from pycap.data.vocab import PAD
from pycap.models.vgg import BLOCKS
from pycap.schedules import make_schedule


@dataclass(frozen=True)
class Variant:
    """Choices that change the peer's speed and not its result.

    channels_last: memory format of images and convolutions. fused: Adam and SGD as one kernel, else "foreach". compact: padding
    is dropped before the projection to the vocabulary, else cross_entropy ignores it.
    """

    channels_last: bool = True
    fused: bool = True
    compact: bool = True

    def __str__(self) -> str:
        return ", ".join(
            (
                "channels_last" if self.channels_last else "contiguous",
                "fused optimiser" if self.fused else "foreach optimiser",
                "padding dropped" if self.compact else "ignore_index",
            )
        )


def vgg_layers(name: str, width: float = 1.0) -> list[int]:
    """Output channels of each convolution of pycap's VGG `name`; 0 stands for a max-pool."""
    layers: list[int] = []
    for block in BLOCKS[name]:
        layers += [c if width == 1 else max(8, round(c * width / 8) * 8) for c in block]
        layers.append(0)
    return layers


def build(config: TrainConfig, vocabulary: int, compact: bool = True) -> NIC:
    """The model that `config` describes, with PyTorch's own initial weights."""
    layers = vgg_layers(config.cnn, config.cnn_width)
    cnn = VGG(layers, config.image_size, config.fc_size, config.drop_prob_cnn)
    return NIC(
        cnn,
        vocabulary,
        fc_size=config.fc_size,
        rnn_size=config.rnn_size,
        input_encoding_size=config.input_encoding_size,
        drop_prob_lm=config.drop_prob_lm,
        compact=compact,
    )


def _pairs(model: NIC, names: Iterable[str]) -> dict[str, tuple[nn.Parameter, str]]:
    """pycap's name of each parameter -> (PyTorch's, how its layout differs: "conv", "flat" (fc6) or "")."""
    convolutions = [m for m in model.cnn.features if isinstance(m, nn.Conv2d)]
    layers: dict[str, nn.Module] = {
        "cnn.fc6": model.cnn.classifier[0],
        "cnn.fc7": model.cnn.classifier[3],
        "image_embedding": model.image_embedding,
        "word_embedding": model.word_embedding,
        "projection": model.projection,
    }
    ours = [name.removesuffix(".weight") for name in names if name.startswith("cnn.conv") and name.endswith(".weight")]
    layers |= dict(zip(ours, convolutions, strict=True))
    pairs: dict[str, tuple[nn.Parameter, str]] = {
        "lstm.weight_x": (model.lstm.weight_ih_l0, ""),
        "lstm.weight_h": (model.lstm.weight_hh_l0, ""),
        "lstm.bias": (model.lstm.bias_ih_l0, ""),
    }
    for name, layer in layers.items():
        layout = "conv" if isinstance(layer, nn.Conv2d) else "flat" if name == "cnn.fc6" else ""
        pairs[f"{name}.weight"] = (layer.weight, layout)
        if not isinstance(layer, nn.Embedding):
            pairs[f"{name}.bias"] = (layer.bias, "")
    return pairs


def load_arrays(model: NIC, arrays: Mapping[str, np.ndarray]) -> None:
    """Copy pycap's weights (`Module.state_arrays`) into the peer."""
    side, channels = model.cnn.side, model.cnn.channels
    with torch.no_grad():
        for name, (parameter, layout) in _pairs(model, arrays).items():
            value = torch.tensor(arrays[name])
            if layout == "conv":  # [K,R,S,C] -> [K,C,R,S]
                value = value.permute(0, 3, 1, 2)
            elif layout == "flat":  # columns in the order H, W, C -> C, H, W
                value = value.view(-1, side, side, channels).permute(0, 3, 1, 2).flatten(1)
            if value.shape != parameter.shape:
                raise ValueError(f"{name}: shape {tuple(value.shape)}, PyTorch's layer has {tuple(parameter.shape)}")
            parameter.copy_(value)


def state_arrays(model: NIC, names: Iterable[str], gradients: bool = False) -> dict[str, np.ndarray]:
    """The peer's weights (or their gradients) in pycap's names and layouts; names: those of pycap's parameters."""
    side, channels = model.cnn.side, model.cnn.channels
    found = {}
    for name, (parameter, layout) in _pairs(model, names).items():
        value = parameter.grad if gradients else parameter.detach()
        if value is None:
            continue
        if layout == "conv":
            value = value.permute(0, 2, 3, 1)
        elif layout == "flat":
            value = value.view(-1, channels, side, side).permute(0, 2, 3, 1).flatten(1)
        found[name] = value.contiguous().numpy().copy()
    return found


class PeerTrainer:
    """pycap.training.trainer.Trainer, in PyTorch: the same groups, clipping, schedules, freezing and micro-batches."""

    def __init__(
        self, model: NIC, config: TrainConfig, spec: PreprocessSpec, steps_per_epoch: int, variant: Variant
    ) -> None:
        self.model, self.config, self.spec, self.variant = model, config, spec, variant
        self.step_number = 0
        self._autocast = torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16")
        if variant.channels_last:
            model.cnn.to(memory_format=torch.channels_last)
        model.compact = variant.compact
        cnn = list(model.cnn.parameters())
        learnt = [p for n, p in model.named_parameters() if not n.startswith("cnn.") and n != "lstm.bias_hh_l0"]
        clips = (config.grad_clip if config.cnn_grad_clip is None else config.cnn_grad_clip, config.grad_clip)
        rates = (
            config.learning_rate if config.cnn_learning_rate is None else config.cnn_learning_rate,
            config.learning_rate,
        )
        decays = (
            config.weight_decay if config.cnn_weight_decay is None else config.cnn_weight_decay,
            config.weight_decay,
        )
        rules = (config.cnn_optimizer or config.optimizer, config.optimizer)
        self.groups = [
            (_optimizer(rule, parameters, rate, decay, config, variant.fused), parameters, rate, clip)
            for rule, parameters, rate, decay, clip in zip(rules, (cnn, learnt), rates, decays, clips, strict=True)
        ]
        total = config.epochs * steps_per_epoch
        self.schedule = make_schedule(
            config.lr_schedule,
            total_steps=min(total, config.max_steps) if config.max_steps else total,
            warmup_steps=config.warmup_steps,
            min_lr=config.min_learning_rate,
            decay_start=config.lr_decay_start * steps_per_epoch,
            decay_every=config.lr_decay_every * steps_per_epoch,
            decay_rate=config.lr_decay_rate,
            patience=config.plateau_patience,
        )
        self._mean = torch.tensor(spec.mean).view(3, 1, 1)
        self._scale = 1 / torch.tensor(spec.std).view(3, 1, 1)

    def begin_epoch(self, epoch: int) -> None:
        """Freeze the CNN or let it learn, as the config has it for this epoch (from 0)."""
        joint = not self.config.freeze_cnn and epoch >= self.config.finetune_cnn_after
        self.model.train()
        self.model.cnn.requires_grad_(joint).train(joint)

    def step(self, batch: Batch) -> float:
        """One update; returns the loss in nats a token, before the update."""
        images, tokens = self._normalised(batch), torch.from_numpy(batch.tokens).long()
        count = int((tokens[1:] != PAD).sum())
        size = self.config.micro_batch or len(images)
        per_image = tokens.shape[1] // len(images)
        loss = 0.0
        for first in range(0, len(images), size):
            columns = slice(first * per_image, (first + size) * per_image)
            with self._autocast:
                part = self.model(images[first : first + size], tokens[:, columns], count)
            part.backward()
            loss += part.item()
        self._update()
        return loss

    def _update(self) -> None:
        """Clip, step, forget the gradients; counts the step."""
        for optimizer, parameters, rate, clip in self.groups:
            if all(parameter.grad is None for parameter in parameters):  # frozen
                continue
            if clip and self.config.grad_clip_mode == "norm":
                nn.utils.clip_grad_norm_(parameters, clip)
            elif clip:
                nn.utils.clip_grad_value_(parameters, clip)
            optimizer.param_groups[0]["lr"] = self.schedule.lr(rate, self.step_number)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step_number += 1

    def loss(self, batches: Iterable[Batch]) -> float:
        """Mean cross-entropy a token over all captions of `batches`, without dropout."""
        self.model.eval()
        total, count = 0.0, 0
        with torch.inference_mode():
            for batch in batches:
                tokens = torch.from_numpy(batch.tokens).long()
                total += self.model(self._normalised(batch), tokens, 1.0).item()
                count += int((tokens[1:] != PAD).sum())
        return total / max(count, 1)

    def _normalised(self, batch: Batch) -> torch.Tensor:
        """Crop, flip, normalise: float32 [B,3,S,S] in the variant's memory format."""
        size = self.spec.crop
        windows = np.empty((len(batch.images), size, size, 3), np.uint8)
        for window, image, (top, left, flip) in zip(windows, batch.images, batch.crops.tolist(), strict=True):
            crop = image[top : top + size, left : left + size]
            window[...] = crop[:, ::-1] if flip else crop
        layout = torch.channels_last if self.variant.channels_last else torch.contiguous_format
        pixels = torch.from_numpy(windows).permute(0, 3, 1, 2).to(torch.float32, memory_format=layout)
        return pixels.sub_(self._mean).mul_(self._scale)


def _optimizer(
    rule: str, parameters: list[nn.Parameter], rate: float, decay: float, config: TrainConfig, fused: bool
) -> torch.optim.Optimizer:
    how: dict[str, Any] = {"lr": rate, "weight_decay": decay, **({"fused": True} if fused else {"foreach": True})}
    if rule == "adam":
        return torch.optim.Adam(parameters, betas=(config.beta1, config.beta2), eps=config.epsilon, **how)
    if rule == "sgd":
        return torch.optim.SGD(parameters, momentum=config.momentum, **how)
    return torch.optim.RMSprop(
        parameters, lr=rate, weight_decay=decay, alpha=config.alpha, eps=config.epsilon, foreach=True
    )
