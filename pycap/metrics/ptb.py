"""Words of captions as COCO's evaluation counts them: Penn Treebank tokens, lower-cased, without punctuation, no Java.

The official evaluation runs Stanford's PTBTokenizer 3.4.1 (`-preserveLines -lowerCase`). docs/metrics.md says how often
and where these rules give other tokens than it.
"""

from __future__ import annotations

import re

# The list of COCO's evaluation. Its brackets are upper-case and the tokens are not, so that brackets stay, as there.
# The tokenizer makes two marks of a double quote, by its side; both are in the list, so here it is one of it itself.
PUNCTUATION = frozenset(
    ['"', "''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)

_TYPOGRAPHIC = str.maketrans(
    {
        "\u2018": "`",
        "\u2019": "'",
        "\u201c": "``",
        "\u201d": "''",
        "\u2013": "--",
        "\u2014": "--",
        "\u2026": "...",
        "\u00a0": " ",
    }
)
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
# Written in one, counted as two.
_ASSIMILATED = {
    "cannot": ["can", "not"],
    "gonna": ["gon", "na"],
    "gotta": ["got", "ta"],
    "wanna": ["wan", "na"],
    "gimme": ["gim", "me"],
    "lemme": ["lem", "me"],
    "'tis": ["'t", "is"],
    "'twas": ["'t", "was"],
}
_ABBREVIATIONS = (
    "mr|mrs|ms|dr|drs|st|jr|sr|vs|etc|inc|mt|no|ft|lt|gen|col|sgt|capt|ave|blvd|rd|ct|ky|penn|prof|rev"
    "|jan|feb|aug|sep|sept|oct|nov|dec"
)
_PLAIN = re.compile(r"[a-z ]*[a-z]\.?\s*")  # nine captions of ten: split() does
_NOT_PLAIN = re.compile(rf"\b(?:{'|'.join(_ASSIMILATED)}|(?:[a-z]|{_ABBREVIATIONS})\.)")
_TOKEN = re.compile(
    r"""
      <[a-z/][^<>\s]*>                                         # a tag
    | '(?:tis|twas)\b
    | '(?:[sdm]|re|ve|ll)(?![\w'])                             # what a contraction leaves
    | n't(?!\w)
    | (?:ABBREVIATIONS)\.(?!\w)                                # these keep their full stop
    | (?:[a-z]\.)+(?!\w)                                       # so do initials
    | \d+:\d\d(?=[ap]m\b)                                      # 9:00 pm
    | [+-]?\d+(?:[-.,:/]\d+)*(?:(?:-?[^\W_]+)(?:-[^\W_]+)*)?   # 3.5, 2,000, 10:30, 1/2, 2-3, 20th, 3-year-old
    | '\d0s | '(?:em|cause|til|n)(?!\w)'? | [odl]'[a-z]{2,} | ma'am | y'
    | [^\W\d]+?(?=n't(?!\w))                                   # ca n't
    | [^\W\d][\w]*(?:[-/&._][^\W_]+)*                           # words, whole with their hyphens
    | \.{3,} | -{2,} | [!?]+ | `` | '' | =
    | \S
    """.replace("ABBREVIATIONS", _ABBREVIATIONS),
    re.VERBOSE,
)


def ptb_tokens(caption: str) -> list[str]:
    """A caption's words as the scores compare them: `It's a T-shirt!` gives it, 's, a, t-shirt."""
    text = caption.lower()
    if _PLAIN.fullmatch(text) and not _NOT_PLAIN.search(text):
        return text.rstrip().removesuffix(".").split()
    tokens: list[str] = []
    for token in _TOKEN.findall(text.translate(_TYPOGRAPHIC)):
        tokens.extend(_ASSIMILATED.get(token, (_BRACKETS.get(token, token),)))
    return [token for token in tokens if token not in PUNCTUATION]
