"""The demo's report: one HTML file with all in it, for light and dark screens; and its table as text."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from registry.errors import several
from studio.html_page import html_page
from studio.sheets import enlarge

if TYPE_CHECKING:
    from registry.formats.export import ExportReport
    from registry.records import Adapter, Dataset
    from studio.compare.style import StyleDistance, StyleFigures
    from trainers.recipe import Recipe

CELL = 192  # pixels in the report
SHOWN = 24  # training pictures
STYLE = Path(__file__).with_name("report.css")


@dataclass(frozen=True)
class DemoFacts:
    """What the report tells."""

    dataset: "Dataset"
    adapter: "Adapter"
    recipe: "Recipe"
    captions: Sequence[str]
    training: Sequence[Image.Image]
    prompts: Sequence[str]
    plain: Sequence[Image.Image]  # one per prompt, without the adapter
    styled: Sequence[Image.Image]  # one per prompt, with it
    style: "StyleFigures"
    exports: "dict[str, ExportReport]"
    seconds: dict[str, float]


def result_table(style: "StyleFigures", seconds: dict[str, float]) -> str:
    """Distances and times as a table for the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("distance to the training pictures", "colour", "strokes", "texture", "together"):
        table.add_column(title, justify="left" if title.startswith("dist") else "right")
    for name, row in _rows(style):
        table.add_row(name, *(f"{v:.2f}" for v in (row.colour, row.strokes, row.texture, row.total)))
    stages = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    console = Console(file=io.StringIO(), width=100, color_system=None, highlight=False)
    console.print(table)
    console.print(f"\nThe adapter closed {style.closed:.0%} of the distance that can be closed.")
    console.print(f"{stages}; together {sum(seconds.values()):.0f} s\n")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def report_html(facts: DemoFacts) -> str:
    """The whole page; no script, nothing from elsewhere."""
    sections = (
        _summary(facts),
        _pairs(facts),
        _training(facts),
        _figures(facts),
        _files(facts),
        _recipe(facts),
    )
    title = f"{facts.adapter.name}: what the adapter does"
    return html_page(title, STYLE.read_text(encoding="utf-8"), f"<main>\n{''.join(sections)}</main>\n")


def _rows(style: "StyleFigures") -> tuple[tuple[str, "StyleDistance"], ...]:
    return (
        ("the base", style.base),
        ("with the adapter", style.adapter),
        ("least possible (training pictures through the autoencoder)", style.floor),
    )


def _summary(facts: DemoFacts) -> str:
    name, trigger = escape(facts.adapter.name), escape(facts.dataset.trigger)
    total = sum(facts.seconds.values())
    return f"""<header>
<p class="eyebrow">LoRA Studio demo</p>
<h1>{several(len(facts.training), "picture")} became the adapter “{name}”</h1>
<p class="lead">The word <code>{trigger}</code> now draws in their style. Measured without any learnt
encoder, the adapter closed <strong>{facts.style.closed:.0%}</strong> of the distance between what the base
draws and the training pictures. All of it took {total / 60:.1f} minutes.</p>
</header>
"""


def _pairs(facts: DemoFacts) -> str:
    cards = "".join(
        f"""<figure class="pair">
<div>{_picture(plain, "the base: " + prompt)}{_picture(styled, "adapter: " + prompt)}</div>
<figcaption>{escape(prompt)}</figcaption></figure>
"""
        for prompt, plain, styled in zip(facts.prompts, facts.plain, facts.styled, strict=True)
    )
    return f"""<section>
<h2>Same prompt, same seed: left without, right with the adapter</h2>
<p>None of these prompts is a caption of a training picture.</p>
<div class="pairs">
{cards}</div>
</section>
"""


def _training(facts: DemoFacts) -> str:
    cards = "".join(
        f"<figure>{_picture(picture, caption)}<figcaption>{escape(caption)}</figcaption></figure>\n"
        for picture, caption in list(zip(facts.training, facts.captions, strict=True))[:SHOWN]
    )
    more = len(facts.training) - SHOWN
    rest = f"<p>and {more} more</p>" if more > 0 else ""
    return f"""<section>
<h2>The training pictures</h2>
<div class="pictures">
{cards}</div>
{rest}</section>
"""


def _figures(facts: DemoFacts) -> str:
    longest = max(row.total for _, row in _rows(facts.style))
    rows = "".join(
        f"""<tr><th scope="row">{escape(name)}</th>
<td class="bar"><span style="width:{row.total / longest:.1%}"></span></td>
{"".join(f"<td>{value:.2f}</td>" for value in (row.total, row.colour, row.strokes, row.texture))}</tr>
"""
        for name, row in _rows(facts.style)
    )
    times = "".join(f"<li>{escape(name)}: {value:.0f} s</li>" for name, value in facts.seconds.items())
    return f"""<section>
<h2>Distance in style to the training pictures</h2>
<div class="scroll"><table>
<thead><tr><th></th><th></th><th>together</th><th>colour</th><th>strokes</th><th>texture</th></tr></thead>
<tbody>
{rows}</tbody>
</table></div>
<p class="quiet">Fréchet distance between fixed statistics of two sets of pictures: CIELAB colour,
edges at three scales, rectified random filters. 0 = the same; 1 = as far as statistics usually spread.
Closed = (base − adapter) / (base − least possible).</p>
<ul class="times">{times}</ul>
</section>
"""


def _files(facts: DemoFacts) -> str:
    rows = "".join(
        f"""<tr><th scope="row">{escape(Path(report.path).name)}</th><td>{escape(layout)}</td>
<td>{report.bytes / 1024:.0f} KiB</td><td>{report.matched} of {report.modules}</td>
<td>{escape(", ".join(tool.tool for tool in report.tools if tool.verdict == "loads"))}</td></tr>
"""
        for layout, report in facts.exports.items()
    )
    name, prompt = escape(facts.adapter.name), escape(facts.prompts[0])
    return f"""<section>
<h2>The files to hand on</h2>
<p>Each was read back and compared with the trained weights, module by module.</p>
<div class="scroll"><table>
<thead><tr><th>file</th><th>layout</th><th>size</th><th>modules equal</th><th>loads in</th></tr></thead>
<tbody>
{rows}</tbody>
</table></div>
<pre>studio sample --adapter {name} --prompt "{prompt}" --cfg 2 --count 4 --out pictures
studio adapters show {name}</pre>
</section>
"""


def _recipe(facts: DemoFacts) -> str:
    from trainers.recipe import to_toml

    return f"""<section>
<details><summary>The recipe, every value with its reason</summary>
<pre>{escape(to_toml(facts.recipe))}</pre></details>
</section>
"""


def _picture(picture: Image.Image, alt: str) -> str:
    """An inline PNG; small pictures are sent small and enlarged by the browser."""
    shown = picture if max(picture.size) <= CELL else enlarge(picture, CELL)
    stream = io.BytesIO()
    shown.convert("RGB").save(stream, format="PNG", optimize=True)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    return f'<img src="data:image/png;base64,{data}" alt="{escape(alt)}" width="{CELL}" height="{CELL}">'
