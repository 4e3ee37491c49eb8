"""The base's own previews, kept: another run with the same base, prompt and seed need not draw them again.

    <cache>/previews/<hash of what they depend on>.png

They may be deleted at any time. Of what captions become the values themselves are hashed, so that it does not
matter where these come from.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, UnidentifiedImageError

from registry.errors import StudioError
from registry.files import atomic_path
from registry.hashing import hash_json
from trainers.families.base import Conditioning

if TYPE_CHECKING:
    from trainers.setup import Setting
    from trainers.stored import Precision

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BasePictures:
    """Pictures that are found by what they were made from.

    Args:
        folder: Made when first written to.
        facts: What all of a run depend on.
    """

    folder: Path
    facts: Mapping[str, Any]

    def path(self, seed: int, size: tuple[int, int], *conds: Conditioning) -> Path:
        """Where a picture lies, by its own seed, its height and width, and what the denoiser reads."""
        texts = [[name, _digest(value)] for cond in conds for name, value in sorted(cond.items())]
        return self.folder / f"{hash_json([dict(self.facts), seed, size, texts])}.png"

    def read(self, path: Path) -> Image.Image | None:
        """The picture; None when it is missing or damaged."""
        try:
            with Image.open(path, formats=("PNG",)) as picture:
                return picture.convert("RGB")
        except FileNotFoundError:
            return None
        except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
            log.warning("preview %s of the base is damaged (%s); drawing it again", path.name, error)
            return None

    def write(self, path: Path, picture: Image.Image) -> None:
        """Keep a picture; not synced, and where that fails it is only drawn again."""
        try:
            with atomic_path(path, durable=False) as temporary:
                picture.save(temporary, "PNG")
        except (StudioError, OSError) as error:
            log.warning("preview of the base is not kept (%s)", error)


def base_pictures(setting: "Setting", precision: "Precision", schedule: Mapping[str, Any]) -> BasePictures:
    """Those that fit a run.

    Args:
        setting: The run.
        precision: How the base's weights are kept.
        schedule: Scheduler config of the noise that is trained on.
    """
    family, section = setting.family, setting.recipe.preview
    parts = (family.denoiser_name, "vae")
    facts: dict[str, Any] = {
        "base": setting.env.base_hash or [family.component_hash(name, setting.memo) for name in parts],
        "weights": precision,
        "computed": [str(family.dtype), setting.accelerator.mixed_precision, family.device.type],
        "sampling": [section.steps, section.cfg, section.scheduler, dict(schedule)],
        "use": [setting.recipe.objective.guidance, bool(section.negative)],
        "versions": [torch.__version__, version("diffusers")],
    }
    return BasePictures(setting.cache / "previews", facts)


def _digest(value: torch.Tensor) -> str:
    shape = f"{value.dtype}{tuple(value.shape)}".encode()
    return sha256(shape + value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
