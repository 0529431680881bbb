"""What a search looks for, and how sentences are ranked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rules:
    """The arguments of `beam_search` that say what is looked for."""

    beam_size: int
    max_length: int
    start: int
    end: int
    suppress: tuple[int, ...]
    length_penalty: float = 0.0

    def __post_init__(self) -> None:
        if self.beam_size < 1 or self.max_length < 1:
            raise ValueError(
                f"beam search: beam_size {self.beam_size} and max_length {self.max_length} must be at least 1"
            )

    def candidates(self, vocabulary: int) -> int:
        """How many next words of a beam can be among the k best: one more than k, for END may take a place."""
        return min(self.beam_size + 1, vocabulary - len(set(self.suppress)))

    def divisor(self, words: int) -> float:
        """What the log-probability of a sentence of so many words is divided by."""
        return (words + 1) ** self.length_penalty


@dataclass(frozen=True)
class Hypothesis:
    """A sentence without START and END. `logprob`: of all its words and END (if it was reached), natural logarithm.
    `score`: what the search ranked it by."""

    ids: tuple[int, ...]
    logprob: float
    score: float


#: What is found where the model's probabilities are not numbers.
NOTHING = Hypothesis((), float("nan"), float("nan"))


def best(hypotheses: list[Hypothesis], k: int) -> list[Hypothesis]:
    """The k best, best first; of equal ones the earlier."""
    return sorted(hypotheses, key=lambda h: -h.score)[:k]
