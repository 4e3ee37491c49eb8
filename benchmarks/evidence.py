"""Does the evidence sheet name the right checkpoint, strength and copies? On the pocket base, demo sets.

    python -m benchmarks.evidence --seeds 10 --json [--keep FOLDER]

For each kind (style, character) and seed a run is trained in three parts: too short, as it should be, and too
long at a high rate; and another one on four pictures until it knows them by heart. Every checkpoint is drawn
over prompts, seeds and strengths. Then the sheet says which it holds for the best, and how strong; the style
distance (`studio.compare.style`), which the sheet does not use, says whether that is right.

What was learnt by heart is asked for in the words of its captions, and so is the run that should be: it has
seen these pictures, too, among others, and must not be called a copier. Whether they are known by heart the
loss says, which the sheet does not use: on the four pictures it is far below that on others of the same set.

FOLDER keeps runs and pictures, so that measuring again trains nothing. Trainer and sampler are the project's
own, in this process.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.evidence_runs import (
    ABOUT,
    FEW,
    KINDS,
    PICTURES,
    PRIOR,
    SEEDS,
    SIZE,
    STRENGTHS,
    Painter,
    Place,
    captions_of,
    draw_all,
    drawings,
    parts_of,
    pictures_of,
    prompts_of,
    train_all,
)
from studio.compare.floor import through_autoencoder
from studio.compare.style import style_distance
from studio.evidence.figures import Judgement, Shot
from studio.evidence.judge import USUAL, judge
from studio.evidence.measure import measure
from studio.evidence.tables import Measured
from studio.pocket.check import MODEL

# -- measuring


def shots_of(place: Place, base: str, names: Sequence[str]) -> list[Shot]:
    """Of the base and of these subjects, at all strengths that were drawn."""
    every = {drawing.name: drawing for drawing in drawings(place)}
    cells = [
        ("" if name == base else name, name, w) for name in (base, *names) for w in every[name].strengths
    ]
    return [
        Shot(subject, weight, prompt, SEEDS[seed], Image.fromarray(picture))
        for subject, name, weight in cells
        for prompt, row in enumerate(pictures_of(place, name, weight))
        for seed, picture in enumerate(row)
    ]


def measured_of(place: Place, names: Sequence[str], pictures: int, *, asked: bool = False) -> Measured:
    """What the sheet measures of subjects trained on so many pictures."""
    training = [picture for picture, _ in place.training(pictures)]
    prompts = captions_of(place) if asked else prompts_of(place)
    shots = shots_of(place, "base-asked" if asked else "base", names)
    return measure(shots, prompts, training, base=MODEL, size=SIZE)


def distances(place: Place, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """The judge from outside: style distance to the training pictures, of each subject at each strength."""
    training = [picture for picture, _ in place.training()]
    out: dict[str, dict[str, float]] = {}
    for name in ("base", *names):
        for weight in (0.0,) if name == "base" else STRENGTHS:
            drawn = pictures_of(place, name, weight)[:ABOUT].reshape(-1, *SIZE, 3)
            shown = [Image.fromarray(picture) for picture in drawn]
            out.setdefault(name, {})[f"{weight:g}"] = round(style_distance(shown, training).total, 3)
    floor = style_distance(through_autoencoder(MODEL, training, SIZE), training).total
    return out | {"floor": {"0": round(floor, 3)}}


def usual_distance(style: dict[str, float]) -> float:
    """Mean over the strengths that the sheet ranks by."""
    return float(np.mean([distance for weight, distance in style.items() if float(weight) >= USUAL[0]]))


def report(place: Place) -> dict[str, Any]:
    """What the sheet says of a kind and seed, and whether it is right."""
    started = time.process_time()
    names = [part.name for part in parts_of(place.kind)]
    measured = measured_of(place, names, PICTURES)
    said = judge(measured, names)
    seconds = time.process_time() - started
    heart = measured_of(place, ["by-heart"], FEW, asked=True)
    control = measured_of(place, ["good-asked"], PICTURES, asked=True)
    by_heart = judge(heart, ["by-heart"])
    alone = {name: judge(measured, [name]) for name in names}
    copiers = [name for name in ("short", "good") if alone[name].memorised]
    copiers += ["good-asked"] if judge(control, ["good-asked"]).memorised else []
    style = distances(place, names)
    best = min(STRENGTHS, key=lambda weight: style["good"][f"{weight:g}"])
    stages = {rank.subject: rank.stage for rank in said.ranks}
    return {
        "kind": place.kind,
        "seed": place.seed,
        "good_first": said.pick == "good",
        "style_says_so_too": min(names, key=lambda name: usual_distance(style[name])) == "good",
        "stages_right": stages == {"short": "undertrained", "good": "good", "long": "overtrained"},
        "by_heart_flagged": by_heart.memorised,
        "by_heart_losses": json.loads(place.losses.read_text(encoding="utf-8")),
        "others_flagged": copiers,
        "weight": alone["good"].weight,
        "range": [alone["good"].low, alone["good"].high],
        "best_weight_by_style": best,
        "weight_right": abs(alone["good"].weight - best) <= 0.25,
        "scores": {rank.subject: rank.score for rank in said.ranks},
        "stages": stages,
        "style": style,
        "figures": figures(measured) | figures(heart) | figures(control),
        "words": words(said, by_heart),
        "cpu_seconds": round(seconds, 1),
    }


def figures(measured: Measured) -> dict[str, dict[str, float]]:
    """Of every point."""
    return {f"{p.subject or 'base'}@{p.weight:g}": p.figures.model_dump() for p in measured.points}


def words(said: Judgement, by_heart: Judgement) -> list[str]:
    """All sentences."""
    ranks = [f"{rank.subject}: {rank.reason}" for rank in said.ranks]
    return [*ranks, said.weight_reason, said.sure, by_heart.memorised_reason]


def summary(reports: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """How often each was right, of each kind."""
    checks = ("style_says_so_too", "good_first", "stages_right", "by_heart_flagged", "weight_right")
    out: list[dict[str, Any]] = []
    for kind in KINDS:
        mine = [one for one in reports if one["kind"] == kind]
        if mine:
            right = {check: sum(one[check] for one in mine) for check in checks}
            flagged = sum(len(one["others_flagged"]) for one in mine)
            out.append({"kind": kind, "seeds": len(mine), **right, "others_flagged": flagged})
    return out


def sheet(place: Place, file: Path, weight: float = 1.0) -> None:
    """Rows of pictures: training, base, every checkpoint; by heart and as it should be, asked by caption."""
    rows = [np.stack([np.asarray(picture.convert("RGB")) for picture, _ in place.training()])]
    for drawing in drawings(place):
        at = weight if drawing.part else 0.0
        rows.append(pictures_of(place, drawing.name, at).reshape(-1, *SIZE, 3))
    wide = (ABOUT + PRIOR) * len(SEEDS)
    blank = np.full((wide, *SIZE, 3), 255, np.uint8)
    lines = [np.concatenate(list(np.concatenate([row, blank])[:wide]), axis=1) for row in rows]
    whole = np.concatenate(lines)
    Image.fromarray(whole).resize((whole.shape[1] * 2, whole.shape[0] * 2), Image.Resampling.NEAREST).save(
        file
    )


def main() -> int:
    """Train, draw, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first one")
    parser.add_argument("--kind", choices=KINDS, action="append", help="only this one")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="of runs and pictures; else nothing stays"
    )
    parser.add_argument("--make-only", action="store_true", help="train and draw, measure nothing")
    parser.add_argument("--sheet", action="store_true", help="also write a sheet of pictures for each")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of lines")
    options = parser.parse_args()
    os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as place:
        bench(options, options.keep or Path(place))
    return 0


def bench(options: argparse.Namespace, keep: Path) -> None:
    """All seeds and kinds."""
    reports: list[dict[str, Any]] = []
    painter: Painter | None = None
    for seed in range(options.first, options.first + options.seeds):
        for kind in options.kind or KINDS:
            place = Place(keep.resolve(), kind, seed)
            if not place.complete():
                train_all(place)
                painter = painter or Painter()
                draw_all(place, painter)
            if options.sheet:
                sheet(place, place.folder / "sheet.png")
            if not options.make_only:
                reports.append(report(place))
                if not options.json:
                    print(json.dumps(reports[-1]), flush=True)
    if options.json:
        print(json.dumps({"summary": summary(reports), "seeds": reports}, indent=1))
    elif reports:
        print(json.dumps(summary(reports)))


if __name__ == "__main__":
    sys.exit(main())
