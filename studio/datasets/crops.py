"""What the model will see of each picture: its buckets and crops, placed by the trainer's own functions."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from registry.records import Image
from studio.datasets.findings import are, names, without_bucket
from studio.runs.frozen import manifest_item
from trainers.focus import focus_of
from trainers.placing import Point, place_items, views
from trainers.plan import Geometry
from trainers.recipe import Recipe
from trainers.rundir import ManifestItem

if TYPE_CHECKING:
    from studio.workspace import Workspace


@dataclass(frozen=True)
class Crop:
    """One way in which a picture is shown.

    Args:
        bucket: (width, height) in pixels that training sees.
        box: Left, top, right, bottom in pixels of the picture.
        kept: Share of the picture's area inside the box, 0 to 1.
        scale: Pixels of the bucket for one of the picture; above 1 it is enlarged.
    """

    bucket: tuple[int, int]
    box: tuple[float, float, float, float]
    kept: float
    scale: float


@dataclass(frozen=True)
class Crops:
    """All pictures of a data set.

    Args:
        shown: Id of a picture -> its crops; several with several resolutions or random crops, none where it
            fits no bucket.
        buckets: (width, height) -> pictures in it.
        notes: What the trainer will say about it, one sentence each.
    """

    shown: dict[str, tuple[Crop, ...]]
    buckets: dict[tuple[int, int], int]
    notes: tuple[str, ...]


def crops_of(ws: "Workspace", images: Sequence[Image], recipe: Recipe) -> Crops:
    """Buckets and crops as training with this recipe has them, once pictures that fit no bucket are left out.

    Raises:
        BadInput: a mask that decides cannot be read.
    """
    shown: dict[str, list[Crop]] = {image.id: [] for image in images}
    step = recipe.bucket_step
    lost = without_bucket(images, recipe)
    said = [f"{are(lost)} smaller than the smallest bucket, {step}x{step}: {names(lost)}"] if lost else []
    gone = {image.id for image in lost}
    images = [image for image in images if image.id not in gone]
    if not images:
        return Crops(dict.fromkeys(shown, ()), {}, tuple(said))
    folder = ws.run_dir("preview").path  # paths of a manifest are relative to its run; this one is never made
    sources = [manifest_item(ws, folder, image) for image in images]

    def focus(source: ManifestItem) -> Point | None:
        return focus_of(source, lambda path: (folder / path).resolve())

    items, notes = place_items(
        sources,
        sizes=recipe.train.sizes,
        step=step,
        data=recipe.data,
        seed=recipe.train.seed,
        focus=focus,
    )
    buckets: Counter[tuple[int, int]] = Counter()
    for item in items:
        image = images[item.index % len(images)]
        shown[image.id] += [_crop(view.geometry) for view in views(item)]
        high, wide = item.geometry.target
        buckets[wide, high] += 1
    ordered = dict(sorted(buckets.items(), key=lambda pair: (-pair[1], pair[0])))
    return Crops({key: tuple(crops) for key, crops in shown.items()}, ordered, (*said, *notes))


def _crop(geometry: Geometry) -> Crop:
    high, wide = geometry.target
    left, top, right, bottom = (round(float(side), 2) for side in geometry.box)
    return Crop((wide, high), (left, top, right, bottom), round(geometry.kept, 4), round(geometry.scale, 4))
