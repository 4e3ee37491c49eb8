"""An evidence sheet as one HTML file with all in it, for light and dark screens; it needs no network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from registry.errors import several
from studio.compare.page import inline
from studio.evidence.chart import strength_curve
from studio.evidence.figures import Near
from studio.evidence.pictures import Pictures
from studio.evidence.plan import Plan
from studio.evidence.result import Evidence
from studio.evidence.rows import figures_at, rows_of
from studio.evidence.words import MEASURES, STAGES, strength_line
from studio.html_page import html_page

STYLES = (Path(__file__).parents[1] / "compare" / "page.css", Path(__file__).with_name("page.css"))
SIDE = 320  # pixels of a picture in it
CLOSE = 6  # pairs of a drawn picture and the nearest training picture


@dataclass(frozen=True)
class PageFacts:
    """What the page tells."""

    about: str
    base: str
    made_at: datetime
    plan: Plan
    evidence: Evidence
    pictures: Pictures
    before: Mapping[str, Any] | None  # the sheet of the run before, see `outputs`


def page_html(facts: PageFacts) -> str:
    """The whole page."""
    sections = (
        _verdict(facts), _ranks(facts), _curve(facts), _strengths(facts), _checkpoints(facts),
        _nearest(facts), _before(facts), _how(facts),
    )  # fmt: skip
    title = f"Evidence: {facts.about}"
    style = "".join(path.read_text(encoding="utf-8") for path in STYLES)
    return html_page(title, style, f"<main>\n<h1>{escape(title)}</h1>\n{''.join(sections)}</main>\n")


def _verdict(facts: PageFacts) -> str:
    judgement = facts.evidence.judgement
    warning = f'<p class="warning">{escape(judgement.memorised_reason)}</p>' if judgement.memorised else ""
    strength = strength_line(judgement.weight, judgement.low, judgement.high)
    return f"""<section class="verdict">
<p class="pick">Use {escape(facts.plan.named(judgement.pick))}, strength {escape(strength)}</p>
<p>{escape(judgement.reason)} {escape(judgement.weight_reason)}</p>
<p class="quiet">{escape(judgement.sure)}</p>{warning}</section>
"""


def _ranks(facts: PageFacts) -> str:
    head = "".join(
        f'<th scope="col" title="{escape(m.hint, quote=True)}">{escape(m.label)}</th>' for m in MEASURES
    )
    rows = "".join(
        f'<tr><th scope="row">{escape(row["name"])}</th><td>{STAGES[row["stage"]]}</td>'
        + "".join(f"<td>{escape(row[measure.name])}</td>" for measure in MEASURES)
        + f"<td>{escape(row['score'])}</td><td>{escape(row['reason'])}</td></tr>\n"
        for row in rows_of(facts.evidence, facts.plan)
    )
    return f"""<h2>Best first</h2>
<div class="wide"><table class="ranks">
<thead><tr><th></th><th scope="col">Training</th>{head}
<th scope="col">Score</th><th scope="col">Why</th></tr></thead>
<tbody>
{rows}</tbody></table></div>
"""


def _curve(facts: PageFacts) -> str:
    evidence = facts.evidence
    pick = evidence.judgement.pick
    drawn = strength_curve(evidence.curve(pick), evidence.judgement)
    return f"<h2>What strength does to {escape(facts.plan.named(pick))}</h2>\n{drawn}\n" if drawn else ""


def _strengths(facts: PageFacts) -> str:
    """The pick at each strength, one row a prompt."""
    pick, seed = facts.evidence.judgement.pick, facts.plan.seeds[0]
    spots = [("", 0.0), *((pick, weight) for weight in facts.plan.weights)]
    heads = ["the base alone", *(f"strength {weight:g}" for weight in facts.plan.weights)]
    return _grid(facts, f"{facts.plan.named(pick)} by strength", heads, spots, seed)


def _checkpoints(facts: PageFacts) -> str:
    """Every subject at the strength nearest to the recommended one."""
    plan = facts.plan
    if len(plan.subjects) < 2:
        return ""
    near = min(plan.weights, key=lambda weight: abs(weight - facts.evidence.judgement.weight))
    spots = [("", 0.0), *((subject.id, near) for subject in plan.subjects)]
    heads = ["the base alone", *(subject.name for subject in plan.subjects)]
    return _grid(facts, f"All of them at strength {near:g}", heads, spots, plan.seeds[0])


def _grid(
    facts: PageFacts, title: str, heads: Sequence[str], spots: Sequence[tuple[str, float]], seed: int
) -> str:
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    rows = "".join(
        f'<tr><th scope="row">{escape(prompt.text)}</th>'
        + "".join(
            f"<td>{_picture(facts.pictures.drawn((*spot, number, seed)), name)}</td>"
            for spot, name in zip(spots, heads, strict=True)
        )
        + "</tr>\n"
        for number, prompt in enumerate(facts.plan.prompts)
    )
    return f"""<h2>{escape(title)}</h2>
<div class="scroll"><table class="grid"><thead><tr><th></th>{head}</tr></thead>
<tbody>
{rows}</tbody></table></div>
"""


def _nearest(facts: PageFacts) -> str:
    """The pick's pictures that are nearest to a training picture, beside it."""
    evidence = facts.evidence
    judgement = evidence.judgement
    own = [p for p in evidence.points if p.subject == judgement.pick and p.nearest]
    if not own:
        return ""
    point = min(own, key=lambda one: abs(one.weight - judgement.weight))
    pairs = "".join(_pair(facts, point.weight, near) for near in point.nearest[:CLOSE])
    return f"""<h2>Nearest training pictures</h2>
<p class="quiet">Left what was drawn at strength {point.weight:g}, right the training picture that it is most
like. Pairs that are the same picture mean that it was learnt by heart.</p>
<div class="pairs">{pairs}</div>
"""


def _pair(facts: PageFacts, weight: float, near: Near) -> str:
    spot = (facts.evidence.judgement.pick, weight, near.prompt, near.seed)
    drawn = _picture(facts.pictures.drawn(spot), facts.plan.prompts[near.prompt].text)
    trained = _picture(facts.pictures.training(near.training), "training picture")
    return f"<figure>{drawn}{trained}<figcaption>{near.similarity:.0%} alike</figcaption></figure>"


def _before(facts: PageFacts) -> str:
    if not facts.before:
        return ""
    pick = facts.evidence.judgement.pick
    now_, then = figures_at(facts.evidence, facts.plan, pick), facts.before["figures"]
    rows = "".join(
        f'<tr><th scope="row">{escape(m.label)}</th><td>{escape(then[m.name])}</td>'
        f"<td>{escape(now_[m.name])}</td></tr>"
        for m in MEASURES
    )
    old = f"{facts.before['pick']} at {facts.before['weight']:g}"
    new = f"{facts.plan.named(pick)} at {facts.evidence.judgement.weight:g}"
    return f"""<h2>Against the run before</h2>
<table class="ranks"><thead><tr><th></th><th scope="col">{escape(old)}</th>
<th scope="col">{escape(new)}</th></tr></thead>
<tbody>{rows}</tbody></table>
"""


def _how(facts: PageFacts) -> str:
    plan, evidence = facts.plan, facts.evidence
    about, prior = (sum(p.about is kind for p in plan.prompts) for kind in (True, False))
    drawn = len(facts.pictures.samples)
    encoder = f" and by {evidence.encoder}" if evidence.encoder else ", without a learnt encoder"
    hints = " ".join(f"{m.label}: {m.hint}." for m in MEASURES)
    text = (
        f"Base: {facts.base}. {several(drawn, 'picture')}: {several(about, 'prompt')} that ask for it and "
        f"{several(prior, 'other prompt')}, {several(len(plan.seeds), 'seed')} each, same noise everywhere. "
        f"Measured by statistics of the autoencoder, of colours and edges{encoder}, against "
        f"{several(len(plan.training), 'training picture')}. {hints} Made {facts.made_at:%d %B %Y}."
    )
    return f'<h2>How this was measured</h2>\n<p class="quiet">{escape(text)}</p>\n'


def _picture(picture: Image.Image | None, name: str) -> str:
    if picture is None:
        return '<div class="none">gone</div>'
    sharp = ' class="sharp"' if max(picture.size) <= 160 else ""
    said = escape(name, quote=True)
    return f'<span class="cell"><img{sharp} src="{inline(picture, SIDE)}" alt="{said}"></span>'
