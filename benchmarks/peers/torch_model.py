"""The peer's model: VGG, NIC and a batched beam search as one would write them in PyTorch; nothing of pycap is imported."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

PAD = 0


class VGG(nn.Module):
    """Images [N,3,S,S] -> fc7 [N,fc_size]. layers: channels of each convolution, 0 for a max-pool."""

    def __init__(self, layers: Sequence[int], image_size: int, fc_size: int, drop: float) -> None:
        super().__init__()
        features: list[nn.Module] = []
        inputs, side = 3, image_size
        for outputs in layers:
            if outputs:
                features += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True)]
                inputs = outputs
            else:
                features.append(nn.MaxPool2d(2))
                side //= 2
        self.features = nn.Sequential(*features)
        self.channels, self.side = inputs, side
        self.classifier = nn.Sequential(
            nn.Linear(inputs * side * side, fc_size),
            nn.ReLU(inplace=True),
            nn.Dropout(drop),
            nn.Linear(fc_size, fc_size),
            nn.ReLU(inplace=True),
            nn.Dropout(drop),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(images).flatten(1))


class NIC(nn.Module):
    """pycap.models.nic.NIC: the image's vector is the LSTM's first input, then START and the words; END is predicted.

    nn.LSTM adds two biases where pycap has one; the second is zero and does not learn.
    """

    def __init__(
        self,
        cnn: VGG,
        vocabulary: int,
        *,
        fc_size: int,
        rnn_size: int,
        input_encoding_size: int,
        drop_prob_lm: float,
        compact: bool = True,
    ) -> None:
        super().__init__()
        self.cnn = cnn
        self.image_embedding = nn.Linear(fc_size, input_encoding_size)
        self.word_embedding = nn.Embedding(vocabulary, input_encoding_size)
        self.lstm = nn.LSTM(input_encoding_size, rnn_size)
        nn.init.zeros_(self.lstm.bias_hh_l0)
        self.lstm.bias_hh_l0.requires_grad_(False)
        self.drop = nn.Dropout(drop_prob_lm)
        self.projection = nn.Linear(rnn_size, vocabulary)
        self.compact = compact

    def forward(self, images: torch.Tensor, tokens: torch.Tensor, normalizer: float | None = None) -> torch.Tensor:
        """Mean cross-entropy a token (sum / normalizer, where given): images [B,3,S,S], tokens int64 [T,N], PAD ignored."""
        first = self.image_embedding(self.cnn(images)).repeat_interleave(tokens.shape[1] // images.shape[0], dim=0)
        h, _ = self.lstm(torch.cat([first[None], self.word_embedding(tokens[:-1])]))
        outputs, targets = h[1:], tokens[1:]
        if self.compact:
            kept = targets != PAD
            outputs, targets = outputs[kept], targets[kept]
        logits = self.projection(self.drop(outputs)).flatten(0, -2)
        if normalizer is None:
            return functional.cross_entropy(logits, targets.flatten(), ignore_index=PAD)
        return functional.cross_entropy(logits, targets.flatten(), ignore_index=PAD, reduction="sum") / normalizer


def beam_search(
    model: NIC,
    images: torch.Tensor,
    *,
    beam_size: int,
    max_length: int,
    start: int,
    end: int,
    suppress: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """(words int64 [N,k,L], log-probabilities [N,k]), best first: images [N,3,S,S], normalised.

    All images advance together; a beam that has ended stays, and repeats END at no cost.
    """
    n, width = images.shape[0], 1
    _, (h, c) = model.lstm(model.image_embedding(model.cnn(images))[None])
    words = torch.full((n, 1), start)
    scores = torch.zeros(n, 1)
    sentences = torch.empty(n, 1, 0, dtype=torch.long)
    for step in range(max_length):
        out, (h, c) = model.lstm(model.word_embedding(words.flatten())[None], (h, c))
        logits = model.projection(out[0])
        logits[:, suppress] = -torch.inf
        logprobs = functional.log_softmax(logits.float(), -1).view(n, width, -1)
        if step:
            ended = words == end
            logprobs[ended] = -torch.inf
            logprobs[..., end].masked_fill_(ended, 0)
        vocabulary = logprobs.shape[-1]
        scores, best = (scores[..., None] + logprobs).flatten(1).topk(beam_size)
        parents, words = best // vocabulary, best % vocabulary
        rows = (torch.arange(n)[:, None] * width + parents).flatten()
        h, c = h[:, rows], c[:, rows]
        kept = sentences.gather(1, parents[..., None].expand(-1, -1, sentences.shape[-1]))
        sentences, width = torch.cat([kept, words[..., None]], -1), beam_size
        if bool((words == end).all()):
            break
    return sentences, scores
