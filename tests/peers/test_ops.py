"""Every op, forward and backward, against PyTorch's on the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; make test PEERS=1 installs it")
functional = torch.nn.functional

from pycap import ops
from pycap.autograd import Tensor
from pycap.testing.cases import winograd_slack
from tests.peers.compare import close, compare, normal

pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("backend")]


# Convolution and pooling ----------------------------------------------------------------------------------------------

# name: (N, H, W, C, K, R, S, stride, padding)
CONVOLUTIONS = {
    "first_layer": (2, 9, 11, 3, 32, 3, 3, 1, 1),
    "primes": (3, 7, 13, 17, 31, 3, 3, 1, 1),
    "multiples": (2, 12, 8, 32, 64, 3, 3, 1, 1),
    "tiny_map": (5, 2, 2, 64, 33, 3, 3, 1, 1),
    "no_padding": (1, 8, 9, 5, 7, 3, 3, 1, 0),
    "stride_2": (2, 9, 10, 8, 5, 3, 3, 2, 1),
    "5x5": (2, 11, 9, 3, 6, 5, 5, 2, 2),
    "1x1": (2, 5, 6, 13, 11, 1, 1, 1, 0),
    "7x7_stride_3": (1, 13, 16, 2, 4, 7, 7, 3, 3),
}


def torch_conv2d(stride: int, padding: int, relu: bool, pool: bool) -> Callable[..., Any]:
    """PyTorch's convolution on our layouts: NHWC, [K,R,S,C]."""

    def run(x: Any, w: Any, b: Any = None) -> Any:
        y = functional.conv2d(x.permute(0, 3, 1, 2), w.permute(0, 3, 1, 2), b, stride, padding)
        y = functional.relu(y) if relu else y
        y = functional.max_pool2d(y, 2) if pool else y
        return y.permute(0, 2, 3, 1)

    return run


@pytest.mark.parametrize("fused", ["plain", "bias", "bias_relu", "bias_relu_pool"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_conv2d(name: str, fused: str) -> None:
    n, h, w, c, k, r, s, stride, padding = CONVOLUTIONS[name]
    rng = np.random.default_rng(1)
    inputs = {"x": normal(rng, n, h, w, c), "w": normal(rng, k, r, s, c, scale=(r * s * c) ** -0.5)}
    if fused != "plain":
        inputs["b"] = normal(rng, k)
    relu, pool = "relu" in fused, "pool" in fused
    winograd = (r, s, stride) == (3, 3, 1)  # where a backend may use transforms, which round more
    compare(
        lambda x, w, b=None: ops.conv2d(x, w, b, stride=stride, padding=padding, relu=relu, pool=pool),
        torch_conv2d(stride, padding, relu, pool),
        inputs,
        slack=winograd_slack(max(c, k)) if winograd else 0.0,
    )


@pytest.mark.parametrize("shape", [(2, 8, 6, 16), (3, 7, 5, 33), (1, 2, 3, 1)])
def test_maxpool(shape: tuple[int, ...]) -> None:
    compare(
        lambda x: ops.maxpool(x),
        lambda x: functional.max_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1),
        {"x": normal(np.random.default_rng(2), *shape)},
    )


def test_maxpool_gives_the_gradient_of_equal_values_to_the_same_one_as_torch() -> None:
    x = np.random.default_rng(3).integers(0, 2, (2, 8, 8, 5)).astype(np.float32)
    compare(ops.maxpool, lambda x: functional.max_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1), {"x": x})


# Linear, embedding, dropout -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("m", "i", "o"), [(1, 7, 5), (33, 64, 31), (17, 129, 65), (250, 31, 33)])
def test_linear(m: int, i: int, o: int, bias: bool, relu: bool) -> None:
    rng = np.random.default_rng(4)
    inputs = {"x": normal(rng, m, i), "w": normal(rng, o, i, scale=i**-0.5)}
    if bias:
        inputs["b"] = normal(rng, o)

    def theirs(x: Any, w: Any, b: Any = None) -> Any:
        y = functional.linear(x, w, b)
        return functional.relu(y) if relu else y

    compare(lambda x, w, b=None: ops.linear(x, w, b, relu=relu), theirs, inputs)


def test_embedding_adds_up_the_gradients_of_a_repeated_row() -> None:
    rng = np.random.default_rng(5)
    ids = rng.integers(0, 11, (6, 9)).astype(np.int32)
    ids[:, 3] = 7
    compare(
        lambda table: ops.embedding(table, ids),
        lambda table: functional.embedding(torch.from_numpy(ids).long(), table),
        {"table": normal(rng, 11, 13)},
    )


def test_dropout_scales_what_it_keeps_and_masks_the_gradient_alike() -> None:
    x = normal(np.random.default_rng(6), 3, 40, 50)
    mask = torch.from_numpy(ops.dropout(Tensor(np.ones_like(x)), 0.3, 12345).data != 0)
    assert 0.67 < mask.double().mean() < 0.73  # 6,000 draws: three deviations are 0.018
    compare(lambda x: ops.dropout(x, 0.3, 12345), lambda x: x * mask / 0.7, {"x": x})


# LSTM -----------------------------------------------------------------------------------------------------------------


def lstm_inputs(rng: np.random.Generator, steps: int, n: int, features: int, hidden: int) -> dict[str, np.ndarray]:
    scale = hidden**-0.5
    return {
        "x": normal(rng, steps, n, features),
        "w_x": normal(rng, 4 * hidden, features, scale=scale),
        "w_h": normal(rng, 4 * hidden, hidden, scale=scale),
        "b": normal(rng, 4 * hidden, scale=0.5),
    }


def torch_lstm(x: Any, w_x: Any, w_h: Any, b: Any, h0: Any = None, c0: Any = None, lengths: Any = None) -> Any:
    """torch.nn.LSTM (gates i, f, g, o, as ours; its second bias zero) -> h padded with zeros, h_n, c_n."""
    hidden = w_h.shape[1]
    module = torch.nn.LSTM(x.shape[2], hidden).to(x.dtype)
    weights = {"weight_ih_l0": w_x, "weight_hh_l0": w_h, "bias_ih_l0": b, "bias_hh_l0": torch.zeros_like(b)}
    zero = torch.zeros(x.shape[1], hidden, dtype=x.dtype)
    state = tuple((zero if s is None else s)[None] for s in (h0, c0))
    given = x if lengths is None else torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    h, (h_n, c_n) = torch.func.functional_call(module, weights, (given, state))
    if lengths is not None:
        h, _ = torch.nn.utils.rnn.pad_packed_sequence(h, total_length=x.shape[0])
    return h, h_n[0], c_n[0]


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize(("steps", "n", "features", "hidden"), [(1, 1, 3, 5), (7, 5, 13, 17), (20, 33, 31, 64)])
def test_lstm(steps: int, n: int, features: int, hidden: int, state: bool) -> None:
    rng = np.random.default_rng(7)
    inputs = lstm_inputs(rng, steps, n, features, hidden)
    if state:
        inputs |= {"h0": normal(rng, n, hidden), "c0": normal(rng, n, hidden)}
    compare(
        lambda **given: ops.lstm(**given),
        lambda **given: (lambda h, _, c: (h, c))(*torch_lstm(**given)),
        inputs,
    )


@pytest.mark.parametrize("state", [False, True])
def test_lstm_of_variable_lengths_against_packed_sequences(state: bool) -> None:
    """Where a sequence has ended ours carries the state on, so its last state is packed sequences' h_n and c_n."""
    rng = np.random.default_rng(8)
    steps, n, features, hidden = 9, 7, 11, 13
    lengths = torch.tensor([9, 1, 4, 7, 7, 2, 9])
    mask = (np.arange(steps)[:, None] < lengths.numpy()).astype(np.uint8)
    inputs = lstm_inputs(rng, steps, n, features, hidden)
    if state:
        inputs |= {"h0": normal(rng, n, hidden), "c0": normal(rng, n, hidden)}
    inside = Tensor(np.repeat(mask[:, :, None], hidden, 2).astype(np.float32))

    def ours(**given: Tensor) -> tuple[Tensor, ...]:
        h, c_n = ops.lstm(**given, mask=mask)
        return h * inside, h[-1], c_n

    compare(ours, lambda **given: torch_lstm(**given, lengths=lengths), inputs)


@pytest.mark.parametrize(("n", "features", "hidden"), [(1, 3, 5), (6, 13, 17), (33, 64, 31)])
def test_lstm_cell(n: int, features: int, hidden: int) -> None:
    rng = np.random.default_rng(9)
    inputs = lstm_inputs(rng, 1, n, features, hidden)
    inputs["x"] = inputs["x"][0]
    inputs |= {"h": normal(rng, n, hidden), "c": normal(rng, n, hidden)}

    def theirs(x: Any, w_x: Any, w_h: Any, b: Any, h: Any, c: Any) -> Any:
        cell = torch.nn.LSTMCell(features, hidden).to(x.dtype)
        weights = {"weight_ih": w_x, "weight_hh": w_h, "bias_ih": b, "bias_hh": torch.zeros_like(b)}
        return torch.func.functional_call(cell, weights, (x, (h, c)))

    compare(lambda **given: ops.lstm_cell(**given), theirs, inputs)


# Vocabulary -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["none", "some", "all_but_one"])
@pytest.mark.parametrize(("m", "hidden", "vocabulary"), [(1, 5, 7), (37, 16, 101), (64, 33, 1009)])
def test_linear_cross_entropy(m: int, hidden: int, vocabulary: int, padding: str) -> None:
    rng = np.random.default_rng(10)
    targets = rng.integers(1, vocabulary, m).astype(np.int32)
    if padding == "some":
        targets[1::3] = 0
    elif padding == "all_but_one":
        targets[1:] = 0

    def theirs(h: Any, w: Any, b: Any) -> Any:
        return functional.cross_entropy(functional.linear(h, w, b), torch.from_numpy(targets).long(), ignore_index=0)

    inputs = {"h": normal(rng, m, hidden), "w": normal(rng, vocabulary, hidden), "b": normal(rng, vocabulary)}
    compare(lambda h, w, b: ops.linear_cross_entropy(h, w, b, targets), theirs, inputs)


def test_linear_cross_entropy_of_large_logits() -> None:
    """Logits of some hundreds: a softmax that does not subtract the maximum would overflow."""
    rng = np.random.default_rng(11)
    targets = rng.integers(0, 23, 9).astype(np.int32)

    def theirs(h: Any, w: Any, b: Any) -> Any:
        return functional.cross_entropy(functional.linear(h, w, b), torch.from_numpy(targets).long())

    inputs = {"h": normal(rng, 9, 8, scale=50), "w": normal(rng, 23, 8), "b": normal(rng, 23)}
    assert np.abs(inputs["h"] @ inputs["w"].T).max() > 100
    compare(lambda h, w, b: ops.linear_cross_entropy(h, w, b, targets, ignore=-1), theirs, inputs)


def test_linear_cross_entropy_with_a_normalizer_is_the_sum_divided() -> None:
    rng = np.random.default_rng(12)
    targets = rng.integers(0, 31, 40).astype(np.int32)

    def theirs(h: Any, w: Any, b: Any) -> Any:
        logits, ids = functional.linear(h, w, b), torch.from_numpy(targets).long()
        return functional.cross_entropy(logits, ids, ignore_index=0, reduction="sum") / 123

    inputs = {"h": normal(rng, 40, 8), "w": normal(rng, 31, 8), "b": normal(rng, 31)}
    compare(lambda h, w, b: ops.linear_cross_entropy(h, w, b, targets, normalizer=123), theirs, inputs)


@pytest.mark.parametrize("suppress", [(), (0, 3, 50)])
@pytest.mark.parametrize("k", [1, 4, 20])
def test_log_softmax_topk(k: int, suppress: tuple[int, ...]) -> None:
    logits = normal(np.random.default_rng(13), 19, 101, scale=4)
    values, ids = ops.log_softmax_topk(logits, k, suppress)
    masked = torch.tensor(logits)
    masked[:, list(suppress)] = -torch.inf
    peer = functional.log_softmax(masked, 1).topk(k)
    exact = functional.log_softmax(masked.double(), 1).topk(k)
    assert np.array_equal(ids, exact.indices.numpy())
    close("log-probabilities", values, peer.values, exact.values)


# Images and arithmetic ------------------------------------------------------------------------------------------------


def test_preprocess() -> None:
    rng = np.random.default_rng(14)
    images = rng.integers(0, 256, (5, 20, 23, 3)).astype(np.uint8)
    crops = np.array([(0, 0, 0), (4, 7, 1), (2, 3, 0), (1, 0, 1), (4, 0, 0)], np.int32)
    mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)

    def theirs(dtype: Any) -> Any:
        windows = [
            torch.from_numpy(i[t : t + 16, left : left + 16]) for i, (t, left, _) in zip(images, crops, strict=True)
        ]
        x = torch.stack([w.flip(1) if flip else w for w, flip in zip(windows, crops[:, 2], strict=True)]).to(dtype)
        return (x - torch.tensor(mean, dtype=dtype)) / torch.tensor(std, dtype=dtype)

    ours = ops.preprocess(images, crops, 16, mean, std)
    close("pixels", ours.data, theirs(torch.float32), theirs(torch.float64))


EXPRESSIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "broadcast": (lambda a, b: a * b + a + 2.5 * b, lambda a, b: a * b + a + 2.5 * b),
    "concatenate_slice": (
        lambda a, b: ops.concatenate([a, a * b], axis=1)[1:, 2:-1, None],
        lambda a, b: torch.cat([a, a * b], 1)[1:, 2:-1, None],
    ),
    "reductions": (
        lambda a, b: a.mean(axis=(0, 2)).reshape(5, 1) * b.sum(axis=0).reshape(1, -1) + a.mean(),
        lambda a, b: a.mean((0, 2)).reshape(5, 1) * b.sum(0).reshape(1, -1) + a.mean(),
    ),
    "matmul": (lambda a, b: a @ b.reshape(6, 5), lambda a, b: a @ b.reshape(6, 5)),
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_arithmetic(name: str) -> None:
    rng = np.random.default_rng(15)
    compare(*EXPRESSIONS[name], {"a": normal(rng, 4, 5, 6), "b": normal(rng, 5, 6)})
