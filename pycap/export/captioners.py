"""The graphs of a captioner: the encoder, from pixels to the state before START, and one step of decoding."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pycap.data.images import PreprocessSpec
from pycap.data.vocab import Vocabulary
from pycap.export.graph import Graph
from pycap.models.captions import CaptionModel
from pycap.models.merge import Merge
from pycap.models.vgg import VGG
from pycap.nn import Conv2d, Linear

IMAGES, WORDS, LOGPROBS = "images", "words", "logprobs"


def state_sizes(model: CaptionModel) -> dict[str, int]:
    """Each part of the state between two words, float32 [N, size], by name, in the order of the model's own."""
    parts = ("h", "c", "image") if isinstance(model, Merge) else ("h", "c")
    return dict.fromkeys(parts, model.lstm.hidden)


def after(part: str) -> str:
    """What the decoder calls a part of the new state."""
    return f"next_{part}"


def graphs(model: CaptionModel, spec: PreprocessSpec) -> Iterator[Graph]:
    """The encoder, then the decoder, each made when it is asked for: VGG16's takes half a gigabyte."""
    yield encoder(model, spec)
    yield decoder(model)


def encoder(model: CaptionModel, spec: PreprocessSpec) -> Graph:
    """`images` uint8 [N,R,R,3], R = spec.crop: RGB, squashed and cropped -> the state before START, a row an image."""
    sizes = state_sizes(model)
    graph = Graph("encoder")
    images = graph.input(IMAGES, "uint8", spec.crop, spec.crop, 3)
    if isinstance(model, Merge):
        image = graph.zeros(images, "unseen", sizes["image"]) if model.blind else _embedded(graph, model, images, spec)
        zeros = graph.zeros(images, "zeros", sizes["h"])
        state = {"h": zeros, "c": zeros, "image": image}
    else:
        size = model.image_embedding.weight.shape[0]
        seen = graph.zeros(images, "unseen", size) if model.blind else _embedded(graph, model, images, spec)
        h, c = graph.lstm_step(model.lstm, seen, None)
        state = {"h": h, "c": c}
    for part, source in state.items():
        graph.output(source, part, "float32", sizes[part])
    return graph


def decoder(model: CaptionModel) -> Graph:
    """One step: `words` int64 [N] and the state -> `logprobs` float32 [N,V] of the next word, and the new state.

    Words that are never said (PAD, START, UNK) have the log-probability minus infinity; those of the others sum to one.
    """
    sizes = state_sizes(model)
    graph = Graph("decoder")
    words = graph.input(WORDS, "int64")
    old = {part: graph.input(part, "float32", size) for part, size in sizes.items()}
    table = graph.constant("word_embedding.weight", model.word_embedding.weight.data)
    x = graph.node("Gather", [table, words], "embedded")
    h, c = graph.lstm_step(model.lstm, x, (old["h"], old["c"]))
    new = old | {"h": h, "c": c}
    heard = h
    if isinstance(model, Merge):
        heard = graph.linear(model.decoder, graph.node("Add", [h, old["image"]], "merged"), "decoder")
    logits = graph.linear(model.projection, heard, "projection")
    never = np.zeros(model.vocabulary, np.float32)
    never[[Vocabulary.PAD, Vocabulary.START, Vocabulary.UNK]] = -np.inf
    allowed = graph.node("Add", [logits, graph.constant("never", never)], "allowed")
    said = graph.node("LogSoftmax", [allowed], "log_softmax", axis=-1)
    graph.output(said, LOGPROBS, "float32", model.vocabulary)
    for part, source in new.items():
        graph.output(source, after(part), "float32", sizes[part])
    return graph


def _embedded(graph: Graph, model: CaptionModel, images: str, spec: PreprocessSpec) -> str:
    """The embedded image [N,E] of pixels."""
    scale, shift = 1 / np.array(spec.std), -np.array(spec.mean) / np.array(spec.std)
    x = graph.node("Cast", [images], "levels", to=1)  # float32
    x = graph.node("Mul", [x, graph.constant("scale", scale.astype(np.float32))], "scaled")
    x = graph.node("Add", [x, graph.constant("shift", shift.astype(np.float32))], "normalised")
    x = graph.node("Transpose", [x], "planes", perm=[0, 3, 1, 2])
    return graph.linear(model.image_embedding, _fc7(graph, model.cnn, x), "image_embedding")


def _fc7(graph: Graph, cnn: VGG, x: str) -> str:
    """fc7 [N,F] of normalised images [N,3,R,R]; dropout does nothing at inference."""
    columns: np.ndarray | None = None
    channels = 0
    for name, layer in cnn.children():
        if isinstance(layer, Conv2d):
            x = graph.convolution(layer, x, f"cnn.{name}")
            channels = len(layer.bias.data)
        elif isinstance(layer, Linear):
            if name == "fc6":
                x = graph.node("Flatten", [x], "cnn.flat")
                columns = channels_first(layer.weight.shape[1], channels)
            x = graph.linear(layer, x, f"cnn.{name}", columns)
            columns = None
    return x


def channels_first(inputs: int, channels: int) -> np.ndarray:
    """int64 [inputs]: of a square map flattened in the order C, H, W, each number's place in the order H, W, C."""
    side = round((inputs / channels) ** 0.5)
    return np.arange(inputs).reshape(side, side, channels).transpose(2, 0, 1).reshape(-1)
