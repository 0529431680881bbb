"""paper.html: the tables, and images with the captions of the final model and of the baseline, as the paper's Figure 3."""

from __future__ import annotations

from pathlib import Path

from pycap.data import Example
from pycap.data.disk import write_whole
from pycap.data.images import decode_image, viewed
from pycap.pages import Html, badge, document, picture, table
from pycap.pages.parts import escaped
from pycap.paper import plan, report, scores
from pycap.paper.chain import Chain

_SIDE = 256  # pixels of a picture, shown at half of that
_TITLE = "Joint Learning of CNN and LSTM for Image Captioning"
_INTRO = "The chain of Zhu et al. (ImageCLEF 2016), as pycap paper ran it, beside the paper's numbers."
_FIGURES = "The first images of the validation set of which the two models say different things"
_VERDICTS = {report.HOLDS: True, report.FAILS: False, report.OPEN: None}


def write(chain: Chain, path: Path) -> None:
    """The page, a whole file or nothing; nothing outside it is needed."""
    final = plan.SELECTED if (plan.SELECTED, plan.ALL) in chain.results else plan.TUNED
    metric = report.metric_of(chain)
    about = {
        "data": "drawn demo domains" if chain.request.demo else chain.request.root.name,
        "stages": f"{sum(chain.seconds(stage.name) is not None for stage in chain.stages)} of {len(chain.stages)} done",
        "score": metric,
        "validation images": f"{len(chain.validation):,}",
    }
    titles = {stage.name: stage.does for stage in chain.stages}
    figures = _figures(chain, final)
    parts = [
        *(f"<p>{escaped(line)}</p>" for line in report.remarks(chain)),
        *_tables(chain, metric),
        _directions(chain, metric),
        "<h2>Captions of validation images</h2>",
        f"<p>{_FIGURES}. Final model: {escaped(titles[final])}. Baseline: {escaped(titles[plan.BASELINE])}.</p>",
        '<div class="cards">',
        *figures,
        "</div>",
    ]
    write_whole(path, document(_TITLE, "\n".join(parts), _INTRO, [about]))


def _tables(chain: Chain, metric: str) -> list[Html]:
    found = [
        table(
            f"Table {t.number}: {t.title}",
            [*t.columns, *report.heads(chain)],
            [[*row.cells, *report.cells(row, chain)] for row in t.rows],
            numbers=range(len(t.columns) + 1, len(t.columns) + len(report.heads(chain))),
            note=t.note,
        )
        for t in plan.TABLES
    ]
    heads = ["file", "model", "paper (its server's images)", "here (validation set)"]
    title = f"Submitted runs: median of the images' {metric}"
    return [*found, table(title, heads, report.submissions(chain), numbers=range(2, 4))]


def _directions(chain: Chain, metric: str) -> Html:
    """The paper's claims, whether they hold, and how sure that is."""
    rows = []
    for claim in plan.CLAIMS:
        found = report.finding(claim, chain.results)
        more, less = (f"{value:.4f}" for value in found.values) if found.values else ("", "")
        differs = f"{found.mean:+.4f} \u00b1 {found.error:.4f}".replace("-", "\u2212") if found.values else ""
        rows.append([found.text, badge(found.verdict, _VERDICTS[found.verdict]), more, less, differs, found.doubt()])
    heads = ["claim of the paper", "here", "expected higher", "lower", "mean difference of an image", "doubt"]
    return table(f"Directions, by {metric}", heads, rows, numbers=range(2, 5))


def _figures(chain: Chain, final: str) -> list[Html]:
    """The first images whose captions by the final model and by the baseline differ; none while one has not been made."""
    files = [chain.request.out / "captions" / f"{stage}.validation.jsonl" for stage in (final, plan.BASELINE)]
    if not all(file.is_file() for file in files):
        return []
    ours, before = ({row["file_name"]: row["caption"] for row in scores.read(file)} for file in files)
    figures: list[Html] = []
    for example in chain.validation:
        name = example.path.name
        said = {"final model": ours.get(name, ""), "baseline": before.get(name, "")}
        if not all(said.values()) or said["final model"] == said["baseline"]:
            continue
        figures.append(_figure(chain, example, said))
        if len(figures) == plan.FIGURE_IMAGES:
            break
    return figures


def _figure(chain: Chain, example: Example, said: dict[str, str]) -> Html:
    jpeg = viewed(decode_image(example.path, _SIDE))
    name, person = example.path.name, example.captions[0]
    lines = "".join(
        f'<p><small>{escaped(model)}</small> {_judged(chain, example, text)}</p><p class="caption">{escaped(text)}</p>'
        for model, text in said.items()
    )
    return Html(
        f'<figure class="card">{picture(jpeg, f"{name}: {person}", _SIDE, _SIDE)}'
        f'<figcaption><div>{lines}</div><ul class="others"><li>a person: {escaped(person)}</li></ul></figcaption></figure>'
    )


def _judged(chain: Chain, example: Example, text: str) -> str:
    verdict = chain.verdict(str(example.image_id), text)
    return "" if verdict is None else badge(str(verdict).lower(), verdict)
