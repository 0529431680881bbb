"""Scores that others print as BLEU and METEOR and that are neither, under names of their own."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from pycap.metrics.bleu import bleu

Captions = Mapping[Hashable, Sequence[str]]
References = Mapping[Hashable, Sequence[Sequence[str]]]


def bleu_keras(captions: Captions, references: References) -> dict[str, float]:
    """BLEU with `startseq` and `endseq` left in every caption and reference, as Keras tutorials count it.

    Both always match, so that it is higher than BLEU: a caption without one right word scores above 0.
    """
    inflated = bleu(
        {i: ["startseq", *words, "endseq"] for i, words in captions.items()},
        {i: [["startseq", *words, "endseq"] for words in references[i]] for i in captions},
    )
    return {name.replace("BLEU", "bleu_keras"): value for name, value in inflated.items()}


def meteor_nltk(captions: Captions, references: References) -> tuple[float, dict[Hashable, float]]:
    """nltk's METEOR, which has no paraphrases and other parameters than version 1.5: the mean over images, and each.

    Raises:
        LookupError: WordNet, which it takes synonyms from, is not installed.
    """
    from nltk.corpus import wordnet
    from nltk.translate.meteor_score import meteor_score

    try:
        wordnet.ensure_loaded()
    except LookupError as error:
        raise LookupError(
            "meteor_nltk needs WordNet, which nltk does not find: python -m nltk.downloader wordnet"
        ) from error
    scores = {
        i: float(meteor_score([list(words) for words in references[i]], list(caption), wordnet=wordnet))
        for i, caption in captions.items()
    }
    return sum(scores.values()) / len(scores), scores
