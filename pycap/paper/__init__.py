"""`pycap paper`: the chain of the ImageCLEF 2016 paper, from the pre-trained VGG to its tables (docs/paper.md).

| file | its job |
|---|---|
| `plan.py` | stages, tables and claims as data, with the paper's numbers |
| `chain.py` | the stages at work: what is done is not done again |
| `selection.py` | which captions of unlabelled images are trained on |
| `scores.py` | captions of the test's images, and how good they are |
| `report.py`, `page.py` | tables on the screen and paper.json; paper.html |
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from pycap.config import ConfigError, parse_args
from pycap.data import DataError, demo_domains
from pycap.paper import page, report
from pycap.paper.chain import DECIDED, Chain, Request
from pycap.training.run import Stopped

#: Where the demo domains are made when no data is given.
DEMO_FOLDER = Path("data/demo_domains")
_WANTED = ("coco", "flickr8k", "flickr30k", "imageclef")


def run_paper(args: argparse.Namespace) -> int:
    """The command: runs what is not done yet, prints the tables. Status: 128 + n where signal n stopped it.

    args: data, out_dir, vgg_weights, picks, auto_select; options: of `pycap train`, for every stage. Raises what training does.
    """
    chain = Chain(request(args), say=lambda text: print(text, flush=True))
    out = chain.request.out

    def write() -> None:
        report.write_json(chain, out / "paper.json")
        page.write(chain, out / "paper.html")

    try:
        chain.run(write)
    except (Stopped, KeyboardInterrupt) as stop:
        print(f"{stop}\nthe same command goes on from here".lstrip(), flush=True)
        return 128 + getattr(stop, "signal_number", 2)
    write()
    report.show(chain, Console(soft_wrap=True))
    print(f"{out / 'paper.json'}; a page to look at: {out / 'paper.html'}; run files: {out / 'id_sentence*.txt'}")
    return 0


def request(args: argparse.Namespace) -> Request:
    """What the command line asks for; the demo domains are made where it names no data. ConfigError and DataError."""
    options = _options(args.options)
    vgg = Path(args.vgg_weights) if args.vgg_weights else None
    picks = Path(args.picks) if args.picks else None
    if picks and not picks.is_file():
        raise DataError(
            f"{picks}: no such file; --picks wants picked pairs, a line each (docs/data.md), or give --auto-select"
        )
    demo = args.data is None
    if demo:
        share = options.pop("demo_train", 0) / demo_domains.DOMAINS["coco"].splits["train"] or 1.0
        print(
            f"No --data: the chain runs on the drawn demo domains in {DEMO_FOLDER} (docs/paper.md). On real data: --data DIR "
            f"with {', '.join(f'{name}/' for name in _WANTED)} and target/, and --vgg-weights FILE",
            flush=True,
        )
        root = demo_domains.generate(DEMO_FOLDER, share=share)
    else:
        root = Path(args.data)
        missing = [name for name in _WANTED if not (root / name).is_dir()]
        if missing:
            raise DataError(
                f"{root}: no {', '.join(f'{name}/' for name in missing)} in it; docs/data.md says what each holds"
            )
        if vgg is None:
            raise ConfigError(
                "vgg_weights: the chain begins with a VGG that is pre-trained on ImageNet; give its file with --vgg-weights "
                "(docs/weights.md says which files serve)"
            )
    return Request(root, Path(args.out_dir), vgg, demo, picks, args.auto_select, options)


def _options(argv: list[str]) -> dict[str, Any]:
    """Options of training that are laid over every stage's recipe. ConfigError for those that the chain decides itself."""
    given = parse_args(argv, prog="pycap paper")
    names = sorted(given.given or ())
    decided = [name for name in names if name in DECIDED]
    if decided:
        raise ConfigError(f"{decided[0]}: the chain decides it itself, stage by stage; leave it out")
    return {name: getattr(given, name) for name in names}
