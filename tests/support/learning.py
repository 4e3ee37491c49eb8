"""Does the pocket base learn, and what does it forget? Pictures with and without an adapter, compared."""

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from registry.records import Adapter, Base, Dataset
from studio.compare.floor import through_autoencoder
from studio.compare.style import StyleFigures, measure_style
from studio.datasets.ingest import create_dataset, images_of
from studio.demo.prompts import PROMPTS, held_out_prompts
from studio.demo.run import draw_with, open_picture, train_adapter
from studio.pocket.pictures import TRIGGERS, demo_set
from studio.sampling.defaults import default_size
from studio.workspace import POCKET, Workspace
from trainers.plan import replace_trigger
from trainers.recipe import apply_sets, preset_by_name

KINDS = tuple(TRIGGERS)  # style, character, concept
PICTURES, SEED, OTHER_SEED = 24, 7, 8
PROMPTS_OF_ITS_OWN = 6
OTHERS = PROMPTS[:8]  # of things that no demo set shows, without any trigger word


def demo_dataset(ws: Workspace, kind: str, pictures: int = PICTURES) -> Dataset:
    """The demo's pictures of a kind with their captions."""
    with tempfile.TemporaryDirectory() as place:
        for index, (picture, words) in enumerate(demo_set(kind, pictures, SEED)):
            picture.save(Path(place) / f"{index:02}.png")
            (Path(place) / f"{index:02}.txt").write_text(words, encoding="utf-8")
        return create_dataset(ws, kind, [Path(place)], trigger=TRIGGERS[kind]).dataset


def learn(ws: Workspace, dataset: Dataset, kind: str, *sets: str, base: str = POCKET) -> Adapter:
    """An adapter by the preset of that pocket base and kind."""
    recipe = apply_sets(preset_by_name(f"{base}-{kind}"), ["preview.every=0", *sets])
    return train_adapter(ws, recipe, ws.catalog.get(Base, base), dataset, lambda _: None)


def likeness(
    ws: Workspace, dataset: Dataset, adapter: Adapter, kind: str, *, base_name: str = POCKET, **drawing: int
) -> StyleFigures:
    """How near the pictures of prompts that were not trained come to the training pictures.

    `drawing` is what `draw_with` takes: steps and seeds.
    """
    base, training = ws.catalog.get(Base, base_name), images_of(ws, dataset)
    trained = {image.caption for image in training}
    if kind == "style":
        prompts = held_out_prompts(dataset.trigger, trained)[:PROMPTS_OF_ITS_OWN]
    else:
        drawn = dict.fromkeys(words for _, words in demo_set(kind, 40, OTHER_SEED))
        prompts = list(drawn)[:PROMPTS_OF_ITS_OWN]
    texts = [replace_trigger(prompt, dataset.trigger) for prompt in prompts]
    plain, adapted = draw_with(ws, base, (None, adapter), texts, **drawing)
    pictures = [open_picture(ws, image) for image in training]
    floor = through_autoencoder(ws.resolve(base.location), pictures, default_size(ws, base))
    return measure_style(pictures, plain, adapted, floor)


def drift(ws: Workspace, *adapters: Adapter, **drawing: int) -> list[float]:
    """How far pictures of other things move from the base's: root mean square of pixels, 0 to 1; of each."""
    base = ws.catalog.get(Base, POCKET)
    plain, *moved = draw_with(ws, base, (None, *adapters), list(OTHERS), **drawing)
    return [distance(plain, pictures) for pictures in moved]


def distance(one: Sequence[Image.Image], other: Sequence[Image.Image]) -> float:
    """Root mean square over all pixels of two lists of pictures of one size, 0 to 1."""
    pairs = zip(one, other, strict=True)
    squares = [((np.asarray(a, float) - np.asarray(b, float)) / 255) ** 2 for a, b in pairs]
    return math.sqrt(float(np.mean(squares)))
