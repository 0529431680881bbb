"""What the chain has found: the paper's tables with our scores beside its numbers, on the screen and as paper.json."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pycap import metrics
from pycap.data.disk import write_whole
from pycap.paper import plan, scores
from pycap.paper.chain import Chain
from pycap.paper.plan import Claim, Row
from pycap.paper.scores import Score

HOLDS, FAILS, OPEN = "holds", "does not hold", "not known"


@dataclass(frozen=True)
class Finding:
    """A claim beside what was measured. verdict: `HOLDS`, `FAILS` or `OPEN`. values: of the claim's two models. mean, error:
    of the differences of the images' scores, which tell how sure the verdict is."""

    text: str
    verdict: str
    values: tuple[float, float] | None = None
    mean: float = 0.0
    error: float = 0.0

    def sentence(self) -> str:
        """The numbers in words."""
        if self.values is None:
            return "one of the two has not been scored"
        more, less = self.values
        differs = f"an image's score differs by {self.mean:+.4f} \u00b1 {self.error:.4f} on average"
        return "; ".join(filter(None, [f"{more:.4f} against {less:.4f}", differs, self.doubt()]))

    def doubt(self) -> str:
        """What the errors say against the verdict."""
        if self.values is None or abs(self.mean) > 2 * self.error:
            return ""
        return "within two standard errors, so that chance could have made it"


def finding(claim: Claim, results: dict[tuple[str, str], Score]) -> Finding:
    """Whether a claim holds for these results, by the scores of the whole test."""
    more, less = (results.get((stage, claim.test)) for stage in (claim.more, claim.less))
    if more is None or less is None:
        return Finding(claim.text, OPEN)
    holds = more.value >= less.value if claim.or_equal else more.value > less.value
    mean, error = scores.difference(more, less)
    return Finding(claim.text, HOLDS if holds else FAILS, (more.value, less.value), mean, error)


def cells(row: Row, chain: Chain) -> list[str]:
    """A row's last columns: test, the paper's number, ours, CIDEr, BLEU-4, and the true captions where truth is known."""
    found = chain.results.get((row.stage, row.test))
    part = "1/4" if row.test == plan.QUARTER else "all"
    test = f"{part}: {found.images}" if found else part
    paper = "" if row.paper is None else f"{row.paper:.4f}"
    if found is None:
        absent = chain.selection.todo if row.stage == plan.SELECTED and chain.selection.todo else "not trained yet"
        return [test, paper, absent, "", "", *([""] if chain.request.demo else [])]
    own = [f"{found.value:.4f}" if found.metric == "METEOR" else "", f"{found.scores['CIDEr']:.4f}"]
    own.append(f"{found.scores['BLEU-4']:.4f}")
    return [test, paper, *own, *([] if found.true is None else [f"{100 * found.true:.1f} %"])]


def heads(chain: Chain) -> list[str]:
    """The names of `cells`."""
    return ["validation images", "paper", "METEOR", "CIDEr", "BLEU-4", *(["true"] if chain.request.demo else [])]


def remarks(chain: Chain) -> list[str]:
    """What a reader of the tables must know."""
    told = []
    if chain.request.demo:
        told.append(
            "Drawn demo domains, not photographs: the numbers cannot be compared with the paper's, the directions can."
        )
    if missing := metrics.meteor_missing():
        told.append(
            f"METEOR cannot be computed here ({missing}). Directions and medians are by CIDEr, which is another score."
        )
    told.append(
        "± is of the images alone. Another seed, or as little as another number of threads, trains other models, whose "
        "scores may differ by more where training was short."
    )
    told.append(f"Selected pairs: {chain.selection.todo or chain.selection.how}.")
    if chain.selection.true is not None:
        told.append(f"{100 * chain.selection.true:.1f} % of the selected pairs are true of their images.")
    return told


def submissions(chain: Chain) -> list[list[str]]:
    """File, model, the paper's median score, ours."""
    rows = []
    for submission in plan.SUBMISSIONS:
        found = chain.results.get((submission.stage, plan.ALL))
        rows.append(
            [submission.file, submission.model, f"{submission.median:.4f}", f"{found.median:.4f}" if found else ""]
        )
    return rows


def metric_of(chain: Chain) -> str:
    """By which score medians and directions are told."""
    return next((found.metric for found in chain.results.values()), scores.metric())


def show(chain: Chain, console: Console) -> None:
    """Tables, submitted runs and directions, on the screen."""
    for table in plan.TABLES:
        shown = Table(title=f"Table {table.number}: {table.title}", title_justify="left")
        for head in (*table.columns, *heads(chain)):
            shown.add_column(head, overflow="fold")
        for row in table.rows:
            shown.add_row(*row.cells, *cells(row, chain))
        console.print(shown)
        if table.note:
            console.print(table.note, markup=False, highlight=False)
    metric = metric_of(chain)
    shown = Table(title=f"Submitted runs: median of the images' {metric}", title_justify="left")
    for head in ("file", "model", "paper (its server's images)", "here (validation set)"):
        shown.add_column(head, overflow="fold")
    for cols in submissions(chain):
        shown.add_row(*cols)
    console.print(shown)
    console.print(f"Directions, by {metric}:", highlight=False)
    for found in (finding(claim, chain.results) for claim in plan.CLAIMS):
        console.print(f"  {found.verdict}: {found.text} ({found.sentence()})", markup=False, highlight=False)
    for line in remarks(chain):
        console.print(line, markup=False, highlight=False)


def document(chain: Chain) -> dict[str, Any]:
    """Everything, as paper.json holds it."""
    return {
        "metric": metric_of(chain),
        "demo": chain.request.demo,
        "data": str(chain.request.root),
        "remarks": remarks(chain),
        "tables": [
            {
                "table": table.number,
                "title": table.title,
                "note": table.note,
                "rows": [
                    {
                        **dict(zip(table.columns, row.cells, strict=True)),
                        "stage": row.stage,
                        "test": row.test,
                        "paper": row.paper,
                        "here": found.shown() if (found := chain.results.get((row.stage, row.test))) else None,
                    }
                    for row in table.rows
                ],
            }
            for table in plan.TABLES
        ],
        "submitted": [
            {
                **asdict(s),
                "here": found.median if (found := chain.results.get((s.stage, plan.ALL))) else None,
            }
            for s in plan.SUBMISSIONS
        ],
        "directions": [asdict(finding(claim, chain.results)) for claim in plan.CLAIMS],
        **chain.summary(),
    }


def write_json(chain: Chain, path: Path) -> None:
    """paper.json, a whole file or nothing."""
    write_whole(path, json.dumps(document(chain), indent=1, ensure_ascii=False) + "\n")
