"""Pictures of an evidence sheet, opened one at a time."""

from functools import cached_property
from typing import TYPE_CHECKING

from PIL import Image

from registry.errors import StudioError
from registry.records import Comparison, Evaluation, Sample
from studio.compare import grids
from studio.compare.axes import NONE
from studio.evidence.plan import Plan

if TYPE_CHECKING:
    from studio.workspace import Workspace

Spot = tuple[str, float, int, int]  # subject, weight, prompt, seed


class Pictures:
    """Drawn pictures by what they show, and training pictures.

    Args:
        ws: Where they are.
        evaluation: The sheet.
        plan: Of it.
    """

    def __init__(self, ws: "Workspace", evaluation: Evaluation, plan: Plan) -> None:
        self._ws, self._plan = ws, plan
        self._comparison = ws.catalog.get(Comparison, evaluation.comparison_id)

    @cached_property
    def samples(self) -> dict[Spot, str]:
        """Ids of the samples; the base alone is at strength 0."""
        spec = grids.spec_of(self._comparison)
        prompts = {prompt.text: at for at, prompt in enumerate(self._plan.prompts)}
        found: dict[Spot, str] = {}
        for place, cell in grids.cells_of(self._ws, self._comparison).items():
            values = spec.values_at(place)
            subject = "" if values["checkpoint"] == NONE else str(values["checkpoint"])
            weight = float(values["weight"]) if subject else 0.0
            found[subject, weight, prompts[str(values["prompt"])], int(values["seed"])] = cell.sample_id
        return found

    @cached_property
    def _files(self) -> dict[str, tuple[str, ...]]:
        ids = tuple(set(self.samples.values()))
        return {one.id: one.files for one in self._ws.catalog.list(Sample, id=ids)}

    def drawn(self, spot: Spot) -> Image.Image | None:
        """A drawn picture, RGB; None when it is gone."""
        files = self._files.get(self.samples.get(spot, ""), ())
        return self._open(files[0]) if files else None

    def training(self, index: int) -> Image.Image | None:
        """A training picture, RGB; None when it is gone."""
        return self._open(self._ws.relative(self._ws.blobs.path(self._plan.training[index])))

    def _open(self, file: str) -> Image.Image | None:
        try:
            with Image.open(self._ws.resolve(file), formats=("PNG", "JPEG", "WEBP")) as opened:
                return opened.convert("RGB")
        except (OSError, ValueError, SyntaxError, StudioError, Image.DecompressionBombError):
            return None
