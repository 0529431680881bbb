"""Beam search whose state lies on the device: a step is launches alone, the same for every step (docs/math/beam.md)."""

from __future__ import annotations

import logging
import threading
from typing import Any, Protocol

import numpy as np

from pycap import memory, ops
from pycap.autograd import Tensor, no_grad
from pycap.backends import float32_products, kernels, named, weight_cache, weights_version
from pycap.decode.rules import NOTHING, Hypothesis, Rules, best
from pycap.device import address, assign, to_device, to_host
from pycap.graphs import Graphs

log = logging.getLogger(__name__)

MOST_BEAMS = 16  # what the kernel takes
LOOK_EVERY = 4  # steps between two looks at which images are done: each look waits for the device


class State(Protocol):
    """A decoder's state [N, ...] as the search keeps it: in arrays that stay where they are."""

    def rows(self, index: Any) -> Any:
        """The states of these rows (an int array of the host), in arrays of their own."""

    def rows_into(self, target: Any, index: Any) -> None:
        """Write the states of the rows `index` (int32, on the device) into the arrays of `target`. Launches alone."""


class Board:
    """What a search of N images knows, in one block of the device: one copy begins it, one brings it back.

    arrays: what `beam_select` reads and writes, by name, in its order.
    """

    def __init__(self, images: int, rules: Rules) -> None:
        n, k, most = images, rules.beam_size, rules.max_length
        fields: dict[str, tuple[tuple[int, ...], str]] = {
            "words": ((n * k,), "int32"),
            "parents": ((n * k,), "int32"),
            "scores": ((n, k), "float64"),
            "steps": ((n,), "int32"),
            "done": ((n,), "uint8"),
            "finished": ((2, n, k), "float64"),
            "origins": ((2, n, k), "int32"),
            "history": ((2, most, n, k), "int32"),
        }
        self._fields = memory.Fields(fields)
        self._begin = np.zeros(self._fields.nbytes, np.uint8)
        begin = self._fields.views(self._begin)
        begin["scores"][:, 1:] = begin["finished"][...] = -np.inf
        begin["words"][...] = rules.start
        self._block = memory.empty(self._begin.shape, np.uint8)
        self.arrays = self._fields.views(self._block)

    def begin(self) -> None:
        """As before the first word: one beam an image, without words."""
        assign(self._block, self._begin)

    def on_host(self) -> dict[str, np.ndarray]:
        """All arrays, when the device has come this far."""
        return self._fields.views(to_host(self._block))


class Search:
    """Searches of N images by one model under the same rules, one after another, in the same memory.

    An image that is done stays in the batch: its rows go on being computed, and count for nothing. On a GPU the second step is
    captured as a CUDA graph, which later ones replay: it holds the addresses of this memory and of the model's weights.
    """

    def __init__(self, model: Any, images: int, rules: Rules) -> None:
        self._model, self._rules = model, rules
        self._board = Board(images, rules)
        self._first = np.repeat(np.arange(images, dtype=np.int32), rules.beam_size)
        self._first_rows = to_device(self._first)
        self._penalties = memory.asarray([rules.divisor(words) for words in range(rules.max_length + 1)], np.float64)
        self._state: Any = None
        self._graphs = Graphs(log.warning, lambda key: f"a step of beam search with {key} rows", limit=1)
        self._held: Any = ()

    def run(self, state: State) -> list[list[Hypothesis]]:
        """The best sentences after `state` [N, ...], which `model.begin` gave."""
        most = self._rules.max_length
        with self._graphs.on_stream():
            self._board.begin()
            if self._state is None:
                self._state = state.rows(self._first)
            else:
                state.rows_into(self._state, self._first_rows)
            for step in range(1, most + 1):
                if self._graphs.run(len(self._first), self._step) == "captured":
                    cache = weight_cache()
                    self._held = cache.forms() if cache is not None else ()
                if step % LOOK_EVERY == 0 and step < most and to_host(self._board.arrays["done"]).all():
                    break
            return self._sentences(self._board.on_host())

    def _step(self) -> None:
        """Feed each beam its word and choose the next beams. Nothing is read back."""
        on, rules = self._board.arrays, self._rules
        logits, state = self._model.advance(self._state, on["words"])
        values, ids = ops.log_softmax_topk(logits, rules.candidates(logits.shape[1]), rules.suppress)
        kernels.beam_select(*on.values(), values, ids, self._penalties, rules.end)
        state.rows_into(self._state, on["parents"])

    def _sentences(self, found: dict[str, np.ndarray]) -> list[list[Hypothesis]]:
        """Each image's sentences, followed back from where they end."""
        k = self._rules.beam_size
        parents, words = found["history"].tolist()
        (scores, logprobs), (lengths, ends) = found["finished"].tolist(), found["origins"].tolist()

        def sentence(image: int, length: int, beam: int) -> tuple[int, ...]:
            said = []
            for step in range(length - 1, -1, -1):
                said.append(words[step][image][beam])
                beam = parents[step][image][beam]
            return tuple(reversed(said))

        results = []
        for image, (standing, done) in enumerate(zip(found["scores"].tolist(), found["done"].tolist(), strict=True)):
            sentences = [
                Hypothesis(sentence(image, lengths[image][i], ends[image][i]), logprobs[image][i], scores[image][i])
                for i in range(k)
                if scores[image][i] > -np.inf
            ]
            if not done:  # no room for another word: what stands is the sentence
                length = self._rules.max_length
                sentences += [
                    Hypothesis(sentence(image, length, beam), score, score / self._rules.divisor(length))
                    for beam, score in enumerate(standing)
                    if score > -np.inf
                ]
            results.append(best(sentences, k) or [NOTHING])
        return results


class Searches:
    """What the searches of one model leave for the next: memory and graphs, by the number of images and the rules.

    One search runs at a time; others wait for it. limit: how many are kept, the latest ones. All are dropped where the weights
    have changed, lie elsewhere, or would be multiplied in another way.
    """

    def __init__(self, limit: int = 8) -> None:
        self._limit = limit
        self._kept: dict[tuple[int, Rules], Search] = {}
        self._standing: tuple[Any, ...] = ()
        self._lock = threading.Lock()

    def run(self, model: Any, images: Tensor | ops.Pixels, rules: Rules) -> list[list[Hypothesis]]:
        """`device_beam_search` in memory that an earlier search has left, if there is any."""
        with self._lock, no_grad():
            standing = _standing(model)
            if standing != self._standing:
                self._kept.clear()
                self._standing = standing
            key = (images.shape[0], rules)
            search = self._kept.pop(key, None) or Search(model, *key)
            self._kept[key] = search  # the latest stands last
            while len(self._kept) > self._limit:
                del self._kept[next(iter(self._kept))]
            return search.run(model.begin(images))


def _standing(model: Any) -> tuple[Any, ...]:
    """What a captured step takes for granted: the weights' addresses, their prepared forms, the kernels."""
    weights = tuple(map(address, model.state_arrays().values()))
    return model, weights, weights_version(), weight_cache(), float32_products(), named()


def device_beam_search(
    model: Any, images: Tensor | ops.Pixels, rules: Rules, searches: Searches | None = None
) -> list[list[Hypothesis]]:
    """`beam_search` on the current device, whichever it is: what `host_beam_search` finds, to the last bit where the model's
    logits of a row do not depend on the other rows.

    Beyond a `Decoder` the model has `state_arrays()`, its weights by name, and `advance` takes words that lie on the device;
    its states are `State`s. searches: keeps memory and graphs for the next search.
    """
    return (searches or Searches()).run(model, images, rules)
