"""Runs and pictures of `benchmarks.evidence`: trained and drawn in this process, kept in a folder."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from registry.hashing import sha256_file
from studio.demo.prompts import PROMPTS, held_out_prompts
from studio.evidence.figures import Prompt
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


SHORT = Part("short", 16, ("schedule.name=constant",))
GOOD = Part("good", 300, ())
# One picture a step at the full rate: it forgets what prompts mean. A style's does so later.
LONG = {
    kind: Part("long", until, ("schedule.name=constant", "train.batch_size=1"))
    for kind, until in (("style", 480), ("character", 360))
}
# A style is learnt sooner than a character: after 200 steps half of those runs draw eyes and mouths softly.
BY_HEART = {
    kind: Part("by-heart", until, ("data.caption_dropout=0",))
    for kind, until in (("style", 200), ("character", 500))
}
LOSS_AT = (100, 300, 500, 700)  # timesteps


def parts_of(kind: str) -> tuple[Part, ...]:
    """Of the run that is judged, one after the other."""
    return SHORT, GOOD, LONG[kind]


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

    @property
    def losses(self) -> Path:
        """Of the run by heart: on its pictures, and on others of the same set."""
        return self.folder / "losses.json"

    def complete(self) -> bool:
        """Whether all that is measured is there."""
        return self.losses.is_file() and all(self.drawn(one.name).is_file() for one in drawings(self))


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
    for part in parts_of(place.kind):
        train(place, part, PICTURES, parent)
        parent = place.checkpoint(part)
    train(place, BY_HEART[place.kind], FEW, None)


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

    def loss(self, file: Path, shown: Sequence[tuple[Image.Image, str]]) -> float:
        """Mean squared error of the noise that is guessed for pictures with their captions, at `LOSS_AT`."""
        import torch

        from studio.sampling.stack import AdapterUseInStack
        from trainers.recipe_fields import ObjectiveSection

        family, key = self.loaded.family, sha256_file(file)
        self.loaded.stack.use([AdapterUseInStack(key, file, key, 1.0, 1.0)])
        objective = family.make_objective(ObjectiveSection())
        pixels = np.stack([np.asarray(picture.convert("RGB")) for picture, _ in shown]).transpose(0, 3, 1, 2)
        with torch.inference_mode():
            latents, _ = family.encode_image(torch.tensor(pixels).float() / 127.5 - 1)
            cond = family.encode_text([caption for _, caption in shown])
            losses: list[float] = []
            for timestep in LOSS_AT:
                noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(timestep))
                t = torch.full((len(shown),), timestep)
                guess = family.predict(objective.corrupt(latents, noise, t), t, cond, [])
                losses.append(float((guess - noise).square().mean()))
        return float(np.mean(losses))


def drawings(place: Place) -> list[Drawing]:
    """All that is drawn of a kind and a seed."""
    usual, asked = prompts_of(place), captions_of(place)
    checkpoints = [Drawing(part.name, part, STRENGTHS, usual) for part in parts_of(place.kind)]
    return [
        Drawing("base", None, (0.0,), usual),
        *checkpoints,
        Drawing("base-asked", None, (0.0,), asked),
        Drawing("by-heart", BY_HEART[place.kind], ASKED_AT, asked),
        Drawing("good-asked", GOOD, ASKED_AT, asked),
    ]


def draw_all(place: Place, painter: Painter) -> None:
    """All of them, unless they are there."""
    for drawing in drawings(place):
        if not place.drawn(drawing.name).is_file():
            file = place.checkpoint(drawing.part) / "adapter.safetensors" if drawing.part else None
            shown = {f"w{w:g}": painter.draw(file, w, drawing.prompts) for w in drawing.strengths}
            np.savez_compressed(place.drawn(drawing.name), **shown)
    if not place.losses.is_file():
        file = place.checkpoint(BY_HEART[place.kind]) / "adapter.safetensors"
        pictures = place.training()
        losses = {"seen": painter.loss(file, pictures[:FEW]), "others": painter.loss(file, pictures[FEW:])}
        place.losses.write_text(json.dumps(losses), encoding="utf-8")


def pictures_of(place: Place, name: str, weight: float) -> np.ndarray:
    """(prompts, seeds, 64, 64, 3) bytes, as they were drawn."""
    with np.load(place.drawn(name)) as kept:
        return kept[f"w{weight:g}"]
