"""paper.html: the tables, and images with the captions of the final model and of the baseline, as the paper's Figure 3."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from pycap.data.images import decode_image
from pycap.paper import plan, report, scores
from pycap.paper.chain import Chain
from pycap.training.folder import write_text

_SIDE = 160  # pixels of a picture on the page

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Joint Learning of CNN and LSTM for Image Captioning</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222; }}
table {{ border-collapse: collapse; margin: .6rem 0; }} th, td {{ text-align: left; padding: .25rem .8rem; }}
caption {{ text-align: left; font-weight: bold; padding: .4rem 0; }} tr {{ border-bottom: 1px solid #ddd; }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1.2rem; }}
figure {{ margin: 0; display: flex; gap: .8rem; border: 1px solid #ddd; border-radius: 6px; padding: .6rem; }}
img {{ width: 128px; height: 128px; flex: none; }} p {{ max-width: 60rem; }} small {{ color: #777; }}
.true, .holds {{ color: #176d2c; }} .false, .does {{ color: #b3261e; }}
</style>
<h1>Joint Learning of CNN and LSTM for Image Captioning</h1>
<p>The chain of Zhu et al. (ImageCLEF 2016), as <code>pycap paper</code> ran it, beside the paper's numbers.</p>
{remarks}
{tables}
<h2>Directions, by {metric}</h2>
{directions}
<h2>Captions of validation images</h2>
<p>1: {final}. 2: {baseline}. {chosen}</p>
<main>
{figures}
</main></html>
"""


def write(chain: Chain, path: Path) -> None:
    """The page, a whole file or nothing; nothing outside it is needed."""
    final = plan.SELECTED if (plan.SELECTED, plan.ALL) in chain.results else plan.TUNED
    tables = [
        _table(
            f"Table {table.number}: {table.title}",
            [*table.columns, *report.heads(chain)],
            ([*row.cells, *report.cells(row, chain)] for row in table.rows),
            table.note,
        )
        for table in plan.TABLES
    ]
    metric = report.metric_of(chain)
    tables.append(
        _table(
            f"Submitted runs: median of the images' {metric}",
            ["file", "model", "paper (its server's images)", "here (validation set)"],
            report.submissions(chain),
        )
    )
    found = [report.finding(claim, chain.results) for claim in plan.CLAIMS]
    directions = "".join(
        f'<li><b class="{f.verdict.split()[0]}">{f.verdict}</b>: {html.escape(f.text)} ({html.escape(f.sentence())})</li>'
        for f in found
    )
    titles = {stage.name: stage.does for stage in chain.stages}
    text = _PAGE.format(
        remarks="".join(f"<p>{html.escape(line)}</p>" for line in report.remarks(chain)),
        tables="\n".join(tables),
        metric=metric,
        directions=f"<ul>{directions}</ul>",
        final=html.escape(titles[final]),
        baseline=html.escape(titles[plan.BASELINE]),
        chosen="The first images of the validation set of which the two say different things.",
        figures="\n".join(_figures(chain, final)),
    )
    write_text(path, text)


def _table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]], note: str = "") -> str:
    def line(tag: str, texts: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in texts) + "</tr>"

    body = "".join(line("td", row) for row in rows)
    small = f"<p><small>{html.escape(note)}</small></p>" if note else ""
    return f"<table><caption>{html.escape(caption)}</caption>{line('th', heads)}{body}</table>{small}"


def _figures(chain: Chain, final: str) -> list[str]:
    """The first images whose captions by the final model and by the baseline differ; none while one has not been made."""
    files = [chain.request.out / "captions" / f"{stage}.validation.jsonl" for stage in (final, plan.BASELINE)]
    if not all(file.is_file() for file in files):
        return []
    ours, before = ({row["file_name"]: row["caption"] for row in scores.read(file)} for file in files)
    figures: list[str] = []
    for example in chain.validation:
        name = example.path.name
        said = [captions.get(name, "") for captions in (ours, before)]
        if not all(said) or said[0] == said[1]:
            continue
        lines = [f"{n}: {_judged(chain, str(example.image_id), text)}" for n, text in enumerate(said, 1)]
        figures.append(
            f'<figure><img alt="{html.escape(name)}" src="data:image/jpeg;base64,{_picture(example.path)}"><figcaption>'
            f"{'<br>'.join(lines)}<br><small>a person: {html.escape(example.captions[0])}</small></figcaption></figure>"
        )
        if len(figures) == plan.FIGURE_IMAGES:
            break
    return figures


def _judged(chain: Chain, image: str, text: str) -> str:
    verdict = chain.verdict(image, text)
    return html.escape(text) if verdict is None else f'<span class="{str(verdict).lower()}">{html.escape(text)}</span>'


def _picture(path: Path) -> str:
    buffer = io.BytesIO()
    Image.fromarray(decode_image(path, _SIDE)).save(buffer, "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()
