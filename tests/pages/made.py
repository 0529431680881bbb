"""Pages made from little: a run's samples and the paper's chain, without a training run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from pycap.data import Example
from pycap.paper import page, plan
from pycap.paper.scores import Score
from pycap.training.folder import write_lines
from pycap.training.samples import Sample, write_samples

LONG = "a very_long_word_" + "that_nothing_breaks_" * 4 + " & <b>markup</b> \"quoted\" 'too'"
SCORES = {"val_loss": 0.6429, "BLEU-1": 0.9598, "CIDEr": 4.3879}


def samples_page(folder: Path, side: int = 48) -> Path:
    """samples.html of six images: true, false and unjudged captions, one without words, one without people's captions."""
    rng = np.random.default_rng(0)
    said = [
        ("a red ring on the left", -2.75, "true", ["a red hoop", "one large red ring"]),
        ("two dogs run", -8.1, "false", ["a dog"]),
        (LONG, -31.5, "", [LONG]),
        ("", -0.01, "", ["nothing at all"]),
        ("a man in a blue shirt", -6.9, "true", []),
        ("a star", -0.5, "false", ["a cross"]),
    ]
    samples = [
        Sample(f"{i:012}.jpg", rng.integers(0, 256, (side, side, 3), dtype=np.uint8), text, logprob, human, verdict)
        for i, (text, logprob, verdict, human) in enumerate(said)
    ]
    about = {"stage": "coco", "model": "nic on vgg_micro", "step": "4,324"}
    path = folder / "samples.html"
    write_samples(path, "coco: captions of held-out images", "Each with a caption.", about, SCORES, samples)
    return path


def paper_page(folder: Path) -> Path:
    """paper.html of a chain that is done but for its last stage, with two images on which the models differ."""
    (folder / "captions").mkdir()
    examples = []
    for i in range(3):
        file = folder / f"{i}.jpg"
        Image.new("RGB", (40, 30), (60 * i, 90, 120)).save(file)
        examples.append(Example(i, file.name, file, (LONG, "a dog")))
    for stage, texts in ((plan.TUNED, ["a ring", "a dog", LONG]), (plan.BASELINE, ["a ring", "a cat", "a star"])):
        rows = [{"file_name": f"{i}.jpg", "caption": text} for i, text in enumerate(texts)]
        write_lines(folder / "captions" / f"{stage}.validation.jsonl", rows)
    stages = [stage for stage in plan.STAGES if stage.test]
    results = {}
    for number, stage in enumerate(stages[:-1]):
        for test in (plan.ALL, plan.QUARTER):
            each = {str(i): 0.1 * number + 0.01 * i for i in range(5)}
            results[stage.name, test] = Score(
                "METEOR", 0.1 + 0.01 * number, 0.15, 400, 1.0, {"CIDEr": 1.5, "BLEU-4": 0.25}, 0.125, each
            )
    chain: Any = SimpleNamespace(
        request=SimpleNamespace(out=folder, demo=True, root=folder),
        results=results,
        stages=stages,
        validation=examples,
        selection=SimpleNamespace(todo="pick good pairs, or give --auto-select", how="none", true=None),
        seconds=lambda name: None if name == plan.SELECTED else 60.0,
        verdict=lambda image, text: None if text == LONG else text == "a cat",
    )
    path = folder / "paper.html"
    page.write(chain, path)
    return path
