"""Does the evidence sheet name the right checkpoint, strength and copies? On the pocket base, demo sets.

    python -m benchmarks.evidence --seeds 10 --json [--keep FOLDER]

For each kind (style, character) and seed a run is trained in three parts: too short, as it should be, and too
long at a high rate; and another one on four pictures until it knows them by heart. Every checkpoint is drawn
over prompts, seeds and strengths. Then the sheet says which it holds for the best, and how strong; the style
distance (`studio.compare.style`), which the sheet does not use, says whether that is right.

What was learnt by heart is asked for in the words of its captions, and so is the run that should be: it has
seen these pictures, too, among others, and must not be called a copier.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from registry.hashing import sha256_file
from studio.compare.floor import through_autoencoder
from studio.compare.style import style_distance
from studio.demo.prompts import PROMPTS, held_out_prompts
from studio.evidence.figures import Judgement, Prompt, Shot
from studio.evidence.judge import USUAL, judge
from studio.evidence.measure import measure
from studio.evidence.tables import Measured
from studio.pocket.check import MODEL
from studio.pocket.pictures import TRIGGERS, demo_set
from trainers.recipe import Recipe, apply_sets, preset_by_name
from trainers.rundir import CHECKPOINTS, ManifestItem, RunDir, RunEnv, checkpoint_name

KINDS = ("style", "character")
PICTURES, FEW = 24, 4
PICTURE_SEED, OTHER_SEED = 7, 8
SIZE = (64, 64)
STRENGTHS = (0.5, 0.75, 1.0, 1.25)
ABOUT, PRIOR = 6, 2
ASKED_AT = (1.0,)  # strengths at which captions are asked for
SEEDS = (1000, 1001)
DRAW_STEPS = 12  # without guidance, as the demo draws


@dataclass(frozen=True)
class Part:
    """A part of a run: until which step, and how."""

    name: str
    until: int
    sets: tuple[str, ...]


PARTS = (
    Part("short", 16, ("schedule.name=constant",)),
    Part("good", 300, ()),
    # One picture a step at the full rate: it forgets what prompts mean.
    Part("long", 360, ("schedule.name=constant", "train.batch_size=1")),
)
BY_HEART = Part("by-heart", 200, ("data.caption_dropout=0",))


@dataclass(frozen=True)
class Place:
    """Where runs and pictures of a kind and a seed are kept."""

    keep: Path
    kind: str
    seed: int

    @property
    def folder(self) -> Path:
        """Of this kind and seed."""
        return self.keep / f"{self.kind}-{self.seed}"

    def training(self, count: int = PICTURES) -> list[tuple[Image.Image, str]]:
        """The pictures, others for every seed, with captions."""
        return demo_set(self.kind, count, PICTURE_SEED + self.seed)

    def checkpoint(self, part: Part) -> Path:
        """Where a part ends."""
        return self.folder / part.name / CHECKPOINTS / checkpoint_name(part.until)

    def drawn(self, name: str) -> Path:
        """Pictures of a subject."""
        return self.folder / f"{name}.npz"


def prompts_of(place: Place) -> list[Prompt]:
    """Of what was trained, in words that no caption of a style's set has; and of other things."""
    if place.kind == "style":
        words = held_out_prompts(TRIGGERS["style"], [text for _, text in place.training()])
    else:
        words = list(dict.fromkeys(text for _, text in demo_set(place.kind, 40, OTHER_SEED)))
    about = [Prompt(text=text, about=True) for text in words[:ABOUT]]
    return about + [Prompt(text=text, about=False) for text in PROMPTS[:PRIOR]]


def captions_of(place: Place) -> list[Prompt]:
    """Of the few pictures that are learnt by heart."""
    return [Prompt(text=text, about=True) for text in dict.fromkeys(t for _, t in place.training(FEW))]


# -- training


def train(place: Place, part: Part, pictures: int, parent: Path | None) -> None:
    """One part of a run, unless it is there."""
    if (place.checkpoint(part) / "manifest.json").is_file():
        return
    from trainers.metrics import Reporter
    from trainers.run import run
    from trainers.signals import StopFlag

    rundir = write_run(place, part, pictures, parent)
    reporter = Reporter(rundir)
    reporter.start()
    run(reporter, StopFlag())


def write_run(place: Place, part: Part, pictures: int, parent: Path | None) -> RunDir:
    """A run directory with its pictures."""
    rundir = RunDir(place.folder / part.name)
    rundir.path.mkdir(parents=True, exist_ok=True)
    items: list[ManifestItem] = []
    for index, (picture, caption) in enumerate(place.training(pictures)):
        file = rundir.path / f"{index:02}.png"
        picture.save(file)
        items.append(
            ManifestItem(image=file.name, pixel_hash=sha256_file(file), width=64, height=64, caption=caption)
        )
    lines = "".join(json.dumps(item.__dict__) + "\n" for item in items)
    rundir.file("manifest.jsonl").write_text(lines, encoding="utf-8")
    rundir.file("recipe.json").write_text(recipe_of(place, part).model_dump_json(), encoding="utf-8")
    rundir.write_env(
        RunEnv(
            run_id=part.name, name=part.name, family="sd15", base_location=str(MODEL), base_kind="folder",
            base_hash="", cache=str(place.keep / "cache"), parent=str(parent) if parent else "",
        )
    )  # fmt: skip
    return rundir


def recipe_of(place: Place, part: Part) -> Recipe:
    """The shipped recipe, with what the part says."""
    return apply_sets(
        preset_by_name(f"pocket-{place.kind}"),
        [
            f"train.seed={place.seed}", f"train.max_steps={part.until}",
            f"data.trigger={TRIGGERS[place.kind]}", f"checkpoints.every={part.until}",
            "checkpoints.keep_best=false", "preview.every=0", "log.tensorboard=false",
            "train.num_threads=1", *part.sets,
        ],
    )  # fmt: skip


def train_all(place: Place) -> None:
    """The three parts one after the other, each from where the last one ended, and the one by heart."""
    parent: Path | None = None
    for part in PARTS:
        train(place, part, PICTURES, parent)
        parent = place.checkpoint(part)
    train(place, BY_HEART, FEW, None)


# -- drawing


@dataclass(frozen=True)
class Drawing:
    """Pictures of one subject."""

    name: str
    part: Part | None
    strengths: tuple[float, ...]
    prompts: Sequence[Prompt]


class Painter:
    """The project's bases, adapters and sampling in this process; all pictures of a subject as one batch."""

    def __init__(self) -> None:
        import torch

        from studio.sampling.shelf import Shelf
        from studio.sampling.task import TaskBase

        torch.set_num_threads(1)
        base = TaskBase(id="pocket", name="pocket", family="sd15", location=str(MODEL), kind="folder")
        self.loaded = Shelf(torch.device("cpu"), None).get(base)

    def draw(self, file: Path | None, weight: float, prompts: Sequence[Prompt]) -> np.ndarray:
        """(prompts, seeds, 64, 64, 3) bytes."""
        import torch

        from studio.sampling.pixels import to_picture
        from studio.sampling.stack import AdapterUseInStack
        from trainers.preview import sample
        from trainers.recipe_fields import PreviewSection

        family, stack = self.loaded.family, self.loaded.stack
        key = sha256_file(file) if file else ""
        stack.use([AdapterUseInStack(key, file, key, weight, weight)] if file else [])
        noises = [torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(s)) for s in SEEDS]
        noise = torch.cat(noises).repeat(len(prompts), 1, 1, 1)
        how = PreviewSection(scheduler="DDIM", steps=DRAW_STEPS, cfg=1.0)
        with torch.inference_mode():
            rows = [family.encode_text([prompt.text]) for prompt in prompts for _ in SEEDS]
            cond = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
            latents = sample(family, how, cond, cond, noise, torch.Generator())
            pictures = [np.asarray(to_picture(pixels[None])) for pixels in family.decode_image(latents)]
        return np.stack(pictures).reshape(len(prompts), len(SEEDS), *pictures[0].shape)


def drawings(place: Place) -> list[Drawing]:
    """All that is drawn of a kind and a seed."""
    usual, asked = prompts_of(place), captions_of(place)
    checkpoints = [Drawing(part.name, part, STRENGTHS, usual) for part in PARTS]
    return [
        Drawing("base", None, (0.0,), usual),
        *checkpoints,
        Drawing("base-asked", None, (0.0,), asked),
        Drawing("by-heart", BY_HEART, ASKED_AT, asked),
        Drawing("good-asked", PARTS[1], ASKED_AT, asked),
    ]


def draw_all(place: Place, painter: Painter) -> None:
    """All of them, unless they are there."""
    for drawing in drawings(place):
        if not place.drawn(drawing.name).is_file():
            file = place.checkpoint(drawing.part) / "adapter.safetensors" if drawing.part else None
            shown = {f"w{w:g}": painter.draw(file, w, drawing.prompts) for w in drawing.strengths}
            np.savez_compressed(place.drawn(drawing.name), **shown)


def pictures_of(place: Place, name: str, weight: float) -> np.ndarray:
    """(prompts, seeds, 64, 64, 3) bytes, as they were drawn."""
    with np.load(place.drawn(name)) as kept:
        return kept[f"w{weight:g}"]


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
    names = [part.name for part in PARTS]
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
            if not all(place.drawn(drawing.name).is_file() for drawing in drawings(place)):
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
