"""A comparison as one HTML file with all in it: pictures, slider, rankings; for light and dark screens.

Nothing in it asks the network for anything, so it can be sent to someone and opened anywhere.
"""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from studio.compare.arena import Ranking
from studio.compare.axes import AXES
from studio.compare.layout import Table
from studio.compare.spec import Place, Spec
from studio.html_page import html_page

HERE = Path(__file__).parent
_SIDES = ((100, 512), (500, 320), (10**9, 200))  # up to so many cells: longest side of a picture, pixels
_SHARP = 160  # pixels; smaller pictures are kept without loss


def page_html(
    title: str,
    base_name: str,
    spec: Spec,
    tables: Sequence[Table],
    picture: Callable[[Place], Image.Image | None],
    rankings: Mapping[str, Ranking],
) -> str:
    """The whole page.

    Args:
        title: Name of the comparison.
        base_name: Of the base.
        spec: What is compared.
        tables: How it lies.
        picture: Of a cell; None where none is drawn.
        rankings: Axis -> ranking, of axes that were voted on.
    """
    side = next(side for most, side in _SIDES if spec.size <= most)
    grid = "".join(_table(spec, table, picture, side) for table in tables)
    ranks = "".join(_ranking(name, found) for name, found in rankings.items())
    body = f"""<main>
<h1>{escape(title)}</h1>
<p class="quiet">{escape(_facts(base_name, spec))}</p>
{grid}<h2>Two pictures over each other</h2>
<p class="quiet">Click a picture above to put it on one side. Drag the line, or use the arrow keys.</p>
{_read("slider.html")}{ranks}</main>
<dialog aria-label="Picture"><img alt=""><p></p><div class="bar">
<button type="button" data-side="left">Left of the slider</button>
<button type="button" data-side="right">Right of the slider</button>
<button type="button">Close</button></div></dialog>
"""
    style = _read("page.css") + _read("slider.css")
    return html_page(title, style, body, _read("slider.js") + _read("page.js"))


def _facts(base_name: str, spec: Spec) -> str:
    """What all cells share."""
    base = spec.base
    shared = {
        "prompt": base.prompt,
        "negative": base.negative,
        "seed": base.seed,
        "steps": base.steps,
        "guidance": f"{base.cfg:g}",
        "scheduler": base.scheduler,
    }
    shared |= {one.name: one.label(0) for one in spec.axes}
    for one in spec.varied:
        shared.pop(one.name, None)
    size = f"{base.width} x {base.height} pixels"
    said = [
        f"{AXES[name].label if name in AXES else 'avoided'}: {text}" for name, text in shared.items() if text
    ]
    return " · ".join([f"Base: {base_name}", *map(str, said), size])


def _table(spec: Spec, table: Table, picture: Callable[[Place], Image.Image | None], side: int) -> str:
    title = f"<h2>{escape(table.title)}</h2>\n" if table.title else ""
    head = "".join(f'<th scope="col">{escape(label)}</th>' for label in table.columns)
    wide = len(table.columns)
    rows = "".join(
        f'<tr><th scope="row">{escape(label)}</th>'
        + "".join(f"<td>{_cell(spec.line(place), picture(place), side, wide)}</td>" for place in places)
        + "</tr>\n"
        for label, places in table.rows
    )
    return f"""{title}<div class="scroll"><table class="grid">
<thead><tr><th></th>{head}</tr></thead>
<tbody>
{rows}</tbody></table></div>
"""


def _cell(name: str, picture: Image.Image | None, side: int, wide: int) -> str:
    if picture is None:
        return '<div class="none">not drawn</div>'
    said = escape(name, quote=True)
    image = f'<img src="{inline(picture, side)}" alt="{said}">'
    return f'<button type="button" class="cell" data-name="{said}" data-columns="{wide}">{image}</button>'


def inline(picture: Image.Image, side: int) -> str:
    """The pixels alone, as a data address; what a file says of itself stays out of it."""
    picture = picture.convert("RGB")
    stream = io.BytesIO()
    if max(picture.size) <= _SHARP:
        picture.save(stream, format="PNG", optimize=True)
        kind = "png"
    else:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        picture.save(stream, format="WEBP", quality=88)
        kind = "webp"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def _ranking(axis: str, found: Ranking) -> str:
    rows = "".join(
        f"""<tr><th scope="row">{escape(row.label)}</th><td>{row.strength:+.2f}</td>
<td>{row.low:+.2f} to {row.high:+.2f}</td><td>{row.wins} / {row.ties} / {row.losses}</td></tr>
"""
        for row in found.rows
    )
    advice = " ".join(found.advice)
    return f"""<h2>{escape(AXES[axis].label)}: which one people liked better</h2>
<table class="ranks">
<thead><tr><th></th><th>strength</th><th>95 % interval</th><th>won / tied / lost</th></tr></thead>
<tbody>
{rows}</tbody></table>
<p class="quiet">{found.votes} blind votes. {escape(advice)} Strengths are those of Bradley and Terry with
ties (Davidson 1970), in natural log units around a mean of 0.</p>
"""


def _read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")
