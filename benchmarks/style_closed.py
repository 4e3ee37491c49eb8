"""How much of the distance to a style an adapter closes, through the whole studio.

    python -m benchmarks.style_closed                    the demo's style: 3 seeds and a control
    python -m benchmarks.style_closed --folder mosaic    another folder of benchmarks/folders.py, or "all"
    python -m benchmarks.style_closed --base pocket-xl   a pocket base of another family, by its own recipe

Closed = (base - adapter) / (base - floor), see studio/compare/style.py. The control is the adapter of another
style under the same trigger, measured against the style it was not trained on: what it "closes" is what any
change would. It is watercolour, the captioned folder that is neither near to neon nor far (1.2, as far as the
base's flat shapes; ink is at 0.9, because it too turns shapes into lines).
"""

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.folders import draw_folder, folder_names
from registry.records import Adapter, Base, Dataset
from studio.compare.floor import through_autoencoder
from studio.compare.style import StyleFigures, measure_style
from studio.datasets.ingest import create_dataset, images_of
from studio.demo.prompts import held_out_prompts
from studio.demo.run import FOREIGN_TRIGGER, OWN_PICTURES, OWN_SEED, draw_with, open_picture, train_adapter
from studio.pocket.pictures import TRIGGERS
from studio.sampling.defaults import default_size
from studio.workspace import POCKET, Workspace
from trainers.plan import final_caption
from trainers.recipe import Recipe, apply_sets, preset_by_name

PICTURES, PICTURE_SEED = OWN_PICTURES, OWN_SEED  # for neon the demo's own pictures
WRONG, WRONG_FOR_ITSELF = "watercolour", "mosaic"


@dataclass(frozen=True)
class Bench:
    """A workspace, its base and the recipe under test."""

    ws: Workspace
    base: Base
    recipe: Recipe

    def dataset(self, folder: str, trigger: str) -> Dataset:
        """Pictures of a folder as a data set, captions in text files where it has any."""
        name = f"{folder}-{trigger}"
        if (known := self.ws.catalog.find(Dataset, name)) is not None:
            return known
        with tempfile.TemporaryDirectory() as place:
            for index, (picture, words) in enumerate(draw_folder(folder, PICTURES, PICTURE_SEED)):
                picture.save(Path(place) / f"{index:02}.png")
                if words:
                    (Path(place) / f"{index:02}.txt").write_text(words, encoding="utf-8")
            return create_dataset(self.ws, name, [Path(place)], trigger=trigger).dataset

    def train(self, dataset: Dataset, seed: int) -> Adapter:
        """An adapter of these pictures."""
        recipe = apply_sets(self.recipe, [f"train.seed={seed}"])
        named = replace(dataset, name=f"{dataset.name}-{seed}")
        return train_adapter(self.ws, recipe, self.base, named, lambda _: None)

    def measure(self, dataset: Dataset, adapter: Adapter) -> StyleFigures:
        """Figures of an adapter against a data set's pictures; prompts and seeds are always the same."""
        images = images_of(self.ws, dataset)
        training = [open_picture(self.ws, image) for image in images]
        captions = [final_caption(image.caption, dataset.trigger) for image in images]
        prompts = held_out_prompts(dataset.trigger, captions)
        plain, styled = draw_with(self.ws, self.base, (None, adapter), prompts)
        size = default_size(self.ws, self.base)
        floor = through_autoencoder(self.ws.resolve(self.base.location), training, size)
        return measure_style(training, plain, styled, floor)


def report(folder: str, seed: int | str, figures: StyleFigures, seconds: float = 0.0) -> None:
    """One line, as JSON: a person can read it, and a script too."""
    line = {
        "folder": folder,
        "seed": seed,
        "base": round(figures.base.total, 3),
        "adapter": round(figures.adapter.total, 3),
        "floor": round(figures.floor.total, 3),
        "closed": round(figures.closed, 3),
    }
    print(json.dumps(line | ({"seconds": round(seconds, 1)} if seconds else {})), flush=True)


def bench_folder(bench: Bench, folder: str, seeds: list[int], control: bool) -> float:
    """Mean share closed over the seeds; with `control` the wrong style's adapter follows."""
    trigger = TRIGGERS["style"] if folder == "neon" else FOREIGN_TRIGGER
    dataset = bench.dataset(folder, trigger)
    closed: list[float] = []
    for seed in seeds:
        figures = bench.measure(dataset, bench.train(dataset, seed))
        report(folder, seed, figures)
        closed.append(figures.closed)
    if control:
        name = WRONG if folder != WRONG else WRONG_FOR_ITSELF
        wrong = bench.train(bench.dataset(name, trigger), seeds[0])
        report(folder, f"control: {name}", bench.measure(dataset, wrong))
    return statistics.fmean(closed)


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", default="neon", choices=[*folder_names(), "all"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--no-control", action="store_true", help="leave the wrong style out")
    parser.add_argument("--base", default=POCKET)
    parser.add_argument("--preset", default="", help="a shipped recipe; default: the base's own for styles")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override the recipe")
    options = parser.parse_args()
    preset = options.preset or f"{options.base}-style"
    recipe = apply_sets(preset_by_name(preset), ["preview.every=0", *options.set])
    folders = folder_names() if options.folder == "all" else [options.folder]
    with tempfile.TemporaryDirectory() as home:
        ws = Workspace.open(Path(home))
        bench = Bench(ws, ws.catalog.get(Base, options.base), recipe)
        for folder in folders:
            mean = bench_folder(bench, folder, list(range(options.seeds)), control=not options.no_control)
            print(json.dumps({"folder": folder, "mean_closed": round(mean, 3)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
