"""What a check of the data set doctor looks at, and what it says."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from registry.errors import several
from registry.records import Base, Dataset, Image
from studio.datasets.listing import some
from trainers.families import FAMILIES
from trainers.plan import fits_no_bucket

if TYPE_CHECKING:
    from studio.datasets.examine import Examined
    from studio.datasets.tokens import Reader
    from studio.workspace import Workspace
    from trainers.recipe import Recipe

MAX_ASPECT = 2.0  # longer side / shorter side of the narrowest bucket, when no recipe says otherwise
CROPPED = 1.5  # beyond that times the narrowest bucket, a third of the picture is lost
Severity = Literal["bad", "warn", "info"]


@dataclass(frozen=True)
class Finding:
    """One thing to know before training."""

    severity: Severity
    code: str  # stable name, for pages and tests
    message: str
    images: tuple[str, ...]  # ids of the pictures it is about; () for the whole set
    fix: str
    repair: str = ""  # what `fixes.repair` would do about it, as a button says it; "" = nothing


@dataclass(frozen=True)
class Patient:
    """What the checks look at.

    Args:
        ws: The workspace.
        dataset: The data set.
        images: Its pictures.
        recipe: None before one is chosen.
        base: What will be trained, for its tokenizer; None before it is chosen.
        seen: What an examination of the pixels found; None = there was none.
    """

    ws: "Workspace"
    dataset: Dataset
    images: Sequence[Image]
    recipe: "Recipe | None"
    base: Base | None = None
    seen: "Examined | None" = None

    @cached_property
    def readers(self) -> "list[Reader]":
        """Tokenizers of the base that can be read here."""
        from studio.datasets.tokens import readers_of

        return readers_of(self.ws, self.base, self.recipe) if self.base is not None else []

    @cached_property
    def longest(self) -> "Reader | None":
        """The one whose encoder reads most."""
        from studio.datasets.tokens import longest

        return longest(self.ws, self.base, self.readers) if self.base is not None else None

    @property
    def resolution(self) -> int:
        """Training side in pixels; without a recipe the smallest that a family is made for."""
        if self.recipe is not None:
            return self.recipe.train.resolution
        return min(info.resolution for info in FAMILIES.values())

    def has_file(self, image: Image) -> bool:
        """Whether the workspace has its file, and not an empty one."""
        try:
            return self.ws.blobs.path(image.blob).stat().st_size > 0
        except OSError:
            return False

    @property
    def trigger(self) -> str:
        """The word that training uses."""
        return (self.recipe.data.trigger if self.recipe is not None else "") or self.dataset.trigger

    @property
    def longest_aspect(self) -> float:
        """Longer side / shorter side from which a third of a picture or more is cropped away."""
        return CROPPED * (self.recipe.data.max_aspect if self.recipe is not None else MAX_ASPECT)


def are(images: Sequence[Image]) -> str:
    """How a sentence about them begins: "3 pictures are"."""
    return several(len(images), "picture is", "pictures are")


def ids(images: Sequence[Image]) -> tuple[str, ...]:
    """For `Finding.images`."""
    return tuple(image.id for image in images)


def names(images: Sequence[Image]) -> str:
    """The first few names."""
    return some([image.name for image in images])


def without_bucket(images: Sequence[Image], recipe: "Recipe") -> list[Image]:
    """Those that training with this recipe would refuse: smaller than the smallest bucket."""
    step, data = recipe.bucket_step, recipe.data
    return [image for image in images if fits_no_bucket(image.width, image.height, step=step, data=data)]
