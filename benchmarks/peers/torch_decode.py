"""The peer's captioning on a GPU: batched beam search in PyTorch by pycap's rules, all images and beams at once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.peers.torch_model import NIC

_EVERY = 4  # steps between looks at whether all is settled: each look waits for the device


def encode(model: NIC, images: Tensor, autocast: bool) -> Tensor:
    """The LSTM's first input [N,E] float32 of normalised images; the CNN in bfloat16 where asked."""
    with torch.autocast(images.device.type, torch.bfloat16) if autocast else nullcontext():
        return model.image_embedding(model.cnn(images)).float()


def beam_search(
    model: NIC,
    vectors: Tensor,
    *,
    beam_size: int,
    max_length: int,
    start: int,
    end: int,
    suppress: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """(words int64 [N,k,L], filled up with END; log-probabilities [N,k]), best first: vectors [N,E] of the images.

    As pycap.decode.beam_search: END among the k best candidates finishes a sentence, the k best others go on, and what has
    not ended after max_length words is taken as it stands.
    """
    n, k, device = vectors.shape[0], beam_size, vectors.device
    _, (h, c) = model.lstm(vectors[None])
    never = torch.tensor(list(suppress), device=device)
    first = torch.arange(n, device=device)[:, None]
    words = torch.full((n, 1), start, device=device)
    scores = torch.zeros(n, 1, device=device)
    said = torch.full((n, 1, max_length), end, device=device)
    done_said = torch.full((n, k, max_length), end, device=device)
    done = torch.full((n, k), -torch.inf, device=device)
    for step in range(max_length):
        width = words.shape[1]
        out, (h, c) = model.lstm(model.word_embedding(words.flatten())[None], (h, c))
        logits = model.projection(out[0]).index_fill_(1, never, -torch.inf)
        values, ids = functional.log_softmax(logits, -1).topk(min(k + 1, logits.shape[1]))  # END may take a place
        wide = values.shape[1]
        totals, order = (
            (scores[..., None] + values.view(n, width, wide)).flatten(1).sort(dim=1, descending=True, stable=True)
        )
        order = order[:, : 2 * k]  # each beam ends once at most, so that k others are among them
        totals, parents = totals[:, : 2 * k], order // wide
        words = ids.view(n, -1).gather(1, order)
        ending = words == end
        ended = totals[:, :k].masked_fill(~ending[:, :k], -torch.inf)
        done, kept = torch.cat([done, ended], 1).sort(dim=1, descending=True, stable=True)
        done, kept = done[:, :k], kept[:, :k]
        done_said = torch.cat([done_said, said[first, parents[:, :k]]], 1)[first, kept]
        alive = ending.int().sort(dim=1, stable=True).indices[:, :k]  # the best that did not end, in order
        scores = totals.gather(1, alive).masked_fill(ending.gather(1, alive), -torch.inf)
        words, parents = words.gather(1, alive), parents.gather(1, alive)
        said = said[first, parents]
        said[:, :, step] = words
        rows = (first * width + parents).flatten()
        h, c = h.index_select(1, rows), c.index_select(1, rows)
        if step % _EVERY == _EVERY - 1 and bool((scores[:, 0] <= done[:, -1]).all()):
            break
    done, kept = torch.cat([done, scores], 1).sort(dim=1, descending=True, stable=True)
    return torch.cat([done_said, said], 1)[first, kept[:, :k]], done[:, :k]


def score(
    model: NIC, vectors: Tensor, sentences: Sequence[Sequence[int]], start: int, suppress: Sequence[int]
) -> Tensor:
    """Log-probabilities [N] of given words after the images' vectors [N,E]; ids of `suppress` count as impossible."""
    device, longest = vectors.device, max(map(len, sentences))
    words = torch.full((longest, len(sentences)), -1)
    for column, ids in enumerate(sentences):
        words[: len(ids), column] = torch.tensor(ids)
    words = words.to(device)
    inputs = torch.cat([torch.full_like(words[:1], start), words[:-1].clamp(min=0)])
    h, _ = model.lstm(torch.cat([vectors[None], model.word_embedding(inputs)]))
    logits = model.projection(h[1:]).index_fill_(2, torch.tensor(list(suppress), device=device), -torch.inf)
    chosen = functional.log_softmax(logits, -1).gather(2, words.clamp(min=0)[..., None])[..., 0]
    return torch.where(words >= 0, chosen, 0).sum(0)
