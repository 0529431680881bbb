"""The tokenizer of the scores: tokens that Stanford's PTBTokenizer 3.4.1 gave, less COCO's list of punctuation."""

from __future__ import annotations

import re

import pytest

from pycap.metrics import ptb_tokens

# Recorded from `java edu.stanford.nlp.process.PTBTokenizer -preserveLines -lowerCase`, the listed punctuation removed.
RECORDED = {
    "A black dog runs over the grass.": "a black dog runs over the grass",
    "A man's dog can't sit; it's \"big\" and he'll run... don't they've I'm she'd": (
        "a man 's dog ca n't sit it 's big and he 'll run do n't they 've i 'm she 'd"
    ),
    "The dogs' bowl, the '90s, 'quoted words' here and rock 'n' roll": (
        "the dogs bowl the '90s quoted words here and rock 'n' roll"
    ),
    "black/white 1/2 3.5 2,000 10:30 $5 50% #1 5' 6\" tall": ("black/white 1/2 3.5 2,000 10:30 $ 5 50 % # 1 5 6 tall"),
    "Mr. Smith and Dr. Jones on St. Mary's St. near the U.S. at 5 p.m.": (
        "mr. smith and dr. jones on st. mary 's st. near the u.s. at 5 p.m."
    ),
    "a cat on main st.": "a cat on main st.",
    "at 9:00pm": "at 9:00 pm",
    "He cannot go": "he can not go",
    "gonna gotta wanna gimme lemme 'tis 'twas": "gon na got ta wan na gim me lem me 't is 't was",
    "A [bracketed] {curly} (paren) text -- dash - hyphen \u2014 em \u2013 en \u2026 dots": (
        "a -lsb- bracketed -rsb- -lcb- curly -rcb- -lrb- paren -rrb- text dash hyphen em en dots"
    ),
    "well-known T-shirt. x-ray's 3-year-old mother-in-law's": "well-known t-shirt x-ray 's 3-year-old mother-in-law 's",
    "A dog runs.The cat sits.Next, e.g. this etc. end": "a dog runs.the cat sits.next e.g. this etc. end",
    "A dog runs . the cat sits !! what?! ok?? wow... .. end": "a dog runs the cat sits !! what ?! ok ?? wow end",
    "don\u2019t \u201ccurly\u201d \u2018single\u2019 it\u2019s": "do n't curly single it 's",
    "o'clock O'Neil y'all ma'am couldn't've 'em 'cause": "o'clock o'neil y' all ma'am could n't 've 'em 'cause",
    "caf\u00e9 na\u00efve A* b*c ~5 +1 -5 1-2 10x10": "caf\u00e9 na\u00efve a * b * c ~ 5 +1 -5 1-2 10x10",
    "   leading and   trailing   ": "leading and trailing",
    "person's. dog's, cat's! \"it's\"": "person 's dog 's cat 's it 's",
    "": "",
    " . ": "",
}


@pytest.mark.parametrize(("caption", "tokens"), RECORDED.items())
def test_tokens_are_those_of_the_official_tokenizer(caption: str, tokens: str) -> None:
    assert ptb_tokens(caption) == tokens.split()


@pytest.mark.parametrize("caption", ["a dog runs", "a dog runs.", "a  dog. ", "a b. ", "main st.", "we cannot."])
def test_captions_of_letters_take_a_short_way_to_the_same_tokens(caption: str, monkeypatch: pytest.MonkeyPatch) -> None:
    short = ptb_tokens(caption)
    monkeypatch.setattr("pycap.metrics.ptb._PLAIN", re.compile("(?!)"))
    assert ptb_tokens(caption) == short
