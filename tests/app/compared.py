"""Comparisons whose cells are pictures of the demo: nothing is drawn for them."""

import random
from collections.abc import Sequence
from functools import cache

from PIL import Image as Pixels
from PIL import ImageFilter

from registry.records import Adapter, Base, Comparison, Job, JobState, Sample
from studio.compare.arena import cast, next_pair, value_key
from studio.compare.build import base_request, labels_for
from studio.compare.grids import cells_of, create, spec_of
from studio.compare.spec import make_spec
from studio.pocket.pictures import demo_set
from studio.workspace import Workspace

PROMPTS = ("a red circle on a white background", "two blue stars above a green square")
GOALS = {"none": "concept", "neon signs": "style", "ink wash": "character", "zibbo": "character"}


def compared(
    ws: Workspace,
    name: str = "which neon",
    adapters: Sequence[str] = ("neon signs", "zibbo"),
    drawn: float = 1.0,
) -> Comparison:
    """A comparison of adapters, strengths, prompts and seeds, `drawn` of whose cells are there."""
    base = base_request(ws, ws.catalog.list(Base, name="pocket")[0].id, partial=True)
    ids = [ws.catalog.get(Adapter, adapter).id for adapter in adapters]
    axes = {"adapter": ["none", *ids], "weight": [0.5, 1.0], "prompt": list(PROMPTS), "seed": [1, 2]}
    made = create(ws, make_spec(base, axes, labels_for(ws, axes)), name)
    spec, cells = spec_of(made), cells_of(ws, made)
    ids = list(dict.fromkeys(cells[place].sample_id for place in sorted(cells)))
    keep = set(ids[: round(len(ids) * drawn)])
    for place, cell in cells.items():
        if cell.sample_id in keep:
            texts = spec.texts_at(place)
            number = PROMPTS.index(texts["prompt"]) * 2 + int(texts["seed"])
            picture = blurred(GOALS.get(texts["adapter"], "style"), number, float(texts["weight"]))
            draw(ws, cell.sample_id, picture)
    return made


@cache
def blurred(goal: str, number: int, weight: float) -> Pixels.Image:
    """A picture of the demo, the sharper the stronger; `number` below 8."""
    return demo_pictures(goal)[number].filter(ImageFilter.GaussianBlur(1.4 - weight))


@cache
def demo_pictures(goal: str) -> list[Pixels.Image]:
    """Eight of the demo."""
    return [picture for picture, _ in demo_set(goal, 8, 3)]


def draw(ws: Workspace, sample_id: str, picture: Pixels.Image) -> None:
    """Let a sample be drawn."""
    file = ws.sample_dir(sample_id) / "000.png"
    picture.save(file)
    ws.catalog.update(Sample, sample_id, files=(ws.relative(file),))
    for job in ws.catalog.list(Job, subject_id=sample_id):
        ws.catalog.update(Job, job.id, state=JobState.DONE, result={"seconds": 1.5})


def voted(ws: Workspace, comparison: Comparison, best: str, votes: int, seed: int = 1) -> None:
    """Blind votes of someone who mostly likes the adapter of this name best."""
    rng, liked = random.Random(seed), value_key(ws.catalog.get(Adapter, best).id)
    for _ in range(votes):
        pair = next_pair(ws, comparison, "adapter", rng=rng)
        assert pair is not None
        sides = {pair.left: "left", pair.right: "right"}
        outcome = sides.get(liked) if rng.random() < 0.8 else "tie"
        cast(ws, comparison, pair, outcome or rng.choice(("left", "right", "tie")))
