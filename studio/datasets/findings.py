"""What a check of the data set doctor looks at, and what it says."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from registry.records import Dataset, Image
from trainers.families import FAMILIES

if TYPE_CHECKING:
    from studio.workspace import Workspace
    from trainers.recipe import Recipe

Severity = Literal["bad", "warn", "info"]


@dataclass(frozen=True)
class Finding:
    """One thing to know before training."""

    severity: Severity
    code: str  # stable name, for pages and tests
    message: str
    images: tuple[str, ...]  # ids of the pictures it is about; () for the whole set
    fix: str


@dataclass(frozen=True)
class Patient:
    """What the checks look at. `recipe` is None before one is chosen."""

    ws: "Workspace"
    dataset: Dataset
    images: Sequence[Image]
    recipe: "Recipe | None"

    @property
    def resolution(self) -> int:
        """Training side in pixels; without a recipe the smallest that a family is made for."""
        if self.recipe is not None:
            return self.recipe.train.resolution
        return min(info.resolution for info in FAMILIES.values())

    @property
    def trigger(self) -> str:
        """The word that training uses."""
        return (self.recipe.data.trigger if self.recipe is not None else "") or self.dataset.trigger
