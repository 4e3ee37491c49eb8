"""The demo: pictures become an adapter that visibly works, on the base that ships with the studio.

Everything goes the way a person's own work goes: data set, queue, worker, catalog, sampler, export.
"""

import re
import shutil
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from registry.errors import BadInput, StudioError
from registry.files import atomic_path, atomic_write
from registry.formats.export import ExportReport
from registry.records import Adapter, Base, Dataset, JobKind, JobState, RunState, Sample
from registry.records import Image as Picture
from studio.adapters import export
from studio.compare.floor import through_autoencoder
from studio.compare.style import StyleFigures, measure_style
from studio.datasets.ingest import create_dataset, images_of
from studio.demo.prompts import held_out_prompts
from studio.demo.report import DemoFacts, report_html, result_table
from studio.demo.sheet import Panel, contact_sheet
from studio.pocket.pictures import TRIGGERS, demo_set
from studio.runs.follow import attend, follow
from studio.runs.launch import launch
from studio.sampling.defaults import default_size
from studio.sampling.request import AdapterChoice, SampleRequest
from studio.sampling.submit import files_of, job_of, submit
from studio.workspace import POCKET
from trainers.plan import final_caption
from trainers.recipe import Recipe, preset

if TYPE_CHECKING:
    from studio.workspace import Workspace

Say = Callable[[str], None]

OWN_PICTURES = 24
OWN_SEED = 7
OWN_NAME, FOREIGN_NAME, FOREIGN_TRIGGER = "neon-signs", "my-style", "mystyle"
STEPS = 25
GUIDANCE = 1.0  # none: it pushes from what the adapter draws without words, so back to the base's own colours
SEEDS_PER_PROMPT = 2
FIRST_SEED = 1000
MOST_MEASURED = 64  # training pictures that the style is measured on
LAYOUTS = ("kohya", "diffusers")
_OURS = re.compile(r"\d\d\.(png|txt)")  # what we write into the folders of pictures
ENDED = {JobState.DONE, JobState.FAILED, JobState.CANCELLED}


@dataclass(frozen=True)
class DemoResult:
    """What the demo made and measured."""

    run_id: str
    adapter_id: str
    adapter_name: str
    adapter: Path  # kohya layout: the one to hand on
    exports: dict[str, Path]
    sheet: Path
    report: Path
    pictures: list[Path]  # drawn with the adapter
    style: StyleFigures
    seconds: dict[str, float] = field(default_factory=dict[str, float])

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        data = asdict(self)
        data["exports"] = {layout: str(path) for layout, path in self.exports.items()}
        data["pictures"] = [str(path) for path in self.pictures]
        for name in ("adapter", "sheet", "report"):
            data[name] = str(data[name])
        return data

    def to_text(self) -> str:
        """A table of figures, then the paths."""
        return "\n".join(
            (
                result_table(self.style, self.seconds),
                f"adapter   {self.adapter}",
                f"pictures  {self.sheet}",
                f"report    {self.report}",
            )
        )


def run_demo(
    ws: "Workspace",
    out: Path,
    *,
    pictures: Path | None = None,
    progress: Say | None = None,
    recipe: Recipe | None = None,
    steps: int = STEPS,
) -> DemoResult:
    """Train a style on the pocket base and show what it does.

    Args:
        ws: Where data set, run and adapter are kept.
        out: Folder for pictures, exports and report; files of an earlier demo in it are replaced.
        pictures: A person's own folder instead of the demo's drawings.
        progress: Takes one line of news.
        recipe: Instead of the preset "pocket-style".
        steps: Of every picture that is drawn.

    Raises:
        BadInput: the folder has no usable pictures.
        StudioError: training or sampling failed.
    """
    say: Say = progress or (lambda _: None)
    clock = _Clock()
    base = ws.catalog.get(Base, POCKET)
    recipe = recipe or preset(base.family, "style", base.name)
    if out.exists() and not out.is_dir():
        raise BadInput(str(out), "is a file, not a folder", "give another --out")
    for name in ("base", "adapter") if pictures else ("pictures", "base", "adapter"):
        _require_ours(out / name)
    new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)

    with clock.stage("pictures"):
        try:
            dataset = own_dataset(ws, out) if pictures is None else foreign_dataset(ws, pictures, say)
        except StudioError:
            if new:
                with suppress(OSError):  # more than an empty folder stays
                    out.rmdir()
            raise
        images = images_of(ws, dataset)
    say(f"{len(images)} pictures, called up by the word {dataset.trigger!r}")

    with clock.stage("training"):
        adapter = train_adapter(ws, recipe, base, dataset, say)

    with clock.stage("sampling"):
        captions = [final_caption(image.caption, dataset.trigger) for image in images]
        prompts = held_out_prompts(dataset.trigger, captions)
        say(f"drawing {len(prompts)} prompts that no training picture has, with and without the adapter")
        plain, styled = draw_with(ws, base, (None, adapter), prompts, steps=steps)

    with clock.stage("export"):
        exports = {layout: _export(ws, adapter, layout, out) for layout in LAYOUTS}

    with clock.stage("report"):
        training = [open_picture(ws, image) for image in images]
        measured = training[:MOST_MEASURED]
        floor = through_autoencoder(ws.resolve(base.location), measured, default_size(ws, base))
        facts = DemoFacts(
            dataset=dataset,
            adapter=adapter,
            recipe=recipe,
            captions=captions,
            training=training,
            prompts=prompts,
            plain=plain[::SEEDS_PER_PROMPT],
            styled=styled[::SEEDS_PER_PROMPT],
            style=measure_style(measured, plain, styled, floor),
            exports=exports,
            seconds=clock.seconds,
        )
        _keep(out / "base", plain)
        kept = _keep(out / "adapter", styled)
        sheet = _write_sheet(facts, out / "contact-sheet.png")
    report = out / "report.html"
    atomic_write(report, report_html(facts))
    return DemoResult(
        run_id=adapter.run_id,
        adapter_id=adapter.id,
        adapter_name=adapter.name,
        adapter=Path(exports["kohya"].path),
        exports={layout: Path(done.path) for layout, done in exports.items()},
        sheet=sheet,
        report=report,
        pictures=kept,
        style=facts.style,
        seconds=clock.seconds,
    )


class _Clock:
    """Seconds of each stage, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)


def own_dataset(ws: "Workspace", out: Path) -> Dataset:
    """Neon signs with captions, drawn into `out/pictures`."""
    folder = out / "pictures"
    _empty(folder)
    for index, (picture, caption) in enumerate(demo_set("style", OWN_PICTURES, OWN_SEED)):
        picture.save(folder / f"{index:02}.png")
        (folder / f"{index:02}.txt").write_text(caption + "\n", encoding="utf-8")
    name = _free_name(ws, OWN_NAME)
    return create_dataset(ws, name, [folder], trigger=TRIGGERS["style"]).dataset


def foreign_dataset(ws: "Workspace", folder: Path, say: Say) -> Dataset:
    """A person's folder; what could not be used is said."""
    if not folder.exists():
        raise BadInput(str(folder), "is not there", "give a folder with pictures")
    report = create_dataset(ws, _free_name(ws, FOREIGN_NAME), [folder], trigger=FOREIGN_TRIGGER)
    for name, reason in report.refused:
        say(f"left out {name}: {reason}")
    if len(images_of(ws, report.dataset)) < 2:
        ws.catalog.delete(Dataset, report.dataset.id)
        raise BadInput(str(folder), "has fewer than two usable pictures", "a style needs about ten")
    return report.dataset


def _free_name(ws: "Workspace", name: str) -> str:
    """`name`, or `name-2`, ... when data set or adapter of that name are there already."""
    free, number = name, 2
    while ws.catalog.find(Dataset, free) or ws.catalog.find(Adapter, free):
        free, number = f"{name}-{number}", number + 1
    return free


def train_adapter(ws: "Workspace", recipe: Recipe, base: Base, dataset: Dataset, say: Say) -> Adapter:
    """Launch, wait (as the worker when none holds the workspace), and return the registered adapter.

    Raises:
        StudioError: the run did not finish; says why.
    """
    run = launch(ws, recipe, base, dataset, name=dataset.name)
    run = follow(ws, run, say)
    if run.state is not RunState.FINISHED:
        raise StudioError(
            f"run {run.id}",
            f"{run.state}: {run.reason or 'no reason was given'}".rstrip("."),
            "see `studio runs log`",
        )
    adapters = ws.catalog.list(Adapter, run_id=run.id, limit=1)
    assert adapters, "a finished run has its adapter"
    return adapters[0]


def draw_with(
    ws: "Workspace",
    base: Base,
    adapters: Sequence[Adapter | None],
    prompts: list[str],
    *,
    steps: int = STEPS,
    seeds: int = SEEDS_PER_PROMPT,
) -> list[list[Image.Image]]:
    """Pictures of the prompts with each of the adapters, None = without any.

    For each prompt the same seeds; all wait for one sampler.
    """
    width, height = default_size(ws, base)
    choices = [(AdapterChoice(id=adapter.id),) if adapter else () for adapter in adapters]
    samples = [
        [
            submit(
                ws,
                SampleRequest(
                    base=base.id, adapters=choice, prompt=prompt, steps=steps, cfg=GUIDANCE,
                    seed=FIRST_SEED + index * seeds, count=seeds,
                    width=width, height=height,
                ),
            )
            for index, prompt in enumerate(prompts)
        ]
        for choice in choices
    ]  # fmt: skip
    every = [sample for group in samples for sample in group]
    attend(ws, lambda: all(job_of(ws, sample).state in ENDED for sample in every), kinds=(JobKind.SAMPLE,))
    return [[picture for sample in group for picture in _pictures(ws, sample)] for group in samples]


def _pictures(ws: "Workspace", sample: Sample) -> list[Image.Image]:
    job = job_of(ws, sample)
    if job.state is not JobState.DONE:
        raise StudioError(
            f"sample {sample.id}", job.error.rstrip(".") or str(job.state), "see `studio doctor`"
        )
    return [_load(file) for file in files_of(ws, ws.catalog.get(Sample, sample.id))]


def _export(ws: "Workspace", adapter: Adapter, layout: str, out: Path) -> ExportReport:
    file = out / f"{adapter.name}-{layout}.safetensors"
    return export(ws, adapter.id, layout, file, overwrite=True)


def _write_sheet(facts: DemoFacts, file: Path) -> Path:
    trigger = facts.dataset.trigger

    def bare(texts: Sequence[str]) -> list[str]:
        return [text.replace(f", {trigger}", "").removeprefix(f"{trigger}, ") for text in texts]

    closed = f"{facts.style.closed:.0%} of the distance closed"
    sheet = contact_sheet(
        (
            Panel(
                f"{len(facts.training)} training pictures", f"called up by “{trigger}”",
                facts.training, bare(facts.captions),
            ),
            Panel("the base", "same prompts, same seeds, same word", facts.plain, bare(facts.prompts)),
            Panel("with the adapter", closed, facts.styled, bare(facts.prompts), accent=True),
        )
    )  # fmt: skip
    with atomic_path(file) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)
    return file


def _require_ours(folder: Path) -> None:
    """Refuse a folder that holds more than an earlier demo's files: they are not ours to replace."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise BadInput(str(folder), "is not a folder of an earlier demo", "give another --out")
    for file in folder.iterdir() if folder.exists() else ():
        if not (_OURS.fullmatch(file.name) and file.is_file()):
            raise BadInput(str(folder), f"holds {file.name}, which no demo made", "give another --out")


def _empty(folder: Path) -> None:
    _require_ours(folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _keep(folder: Path, pictures: list[Image.Image]) -> list[Path]:
    _empty(folder)
    files = [folder / f"{index:02}.png" for index in range(len(pictures))]
    for file, picture in zip(files, pictures, strict=True):
        picture.save(file)
    return files


def open_picture(ws: "Workspace", image: Picture) -> Image.Image:
    """A picture of a data set, RGB."""
    return _load(ws.blobs.path(image.blob))


def _load(file: Path) -> Image.Image:
    with Image.open(file) as picture:
        return picture.convert("RGB")
