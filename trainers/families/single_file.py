"""Single-file checkpoints: which components are in one, and how each comes out of it.

What a checkpoint lacks (FLUX.1 and SD3.5 are often published as the transformer alone) is taken from the
folder of configs, if that brings the weights.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry.errors import BadInput
from registry.formats.header import read_header

if TYPE_CHECKING:
    from trainers.families.base import Family

_UNET, _VAE = ("model.diffusion_model.",), ("first_stage_model.",)
_CLIP, _T5 = "text_encoders.clip_l.", "text_encoders.t5xxl."
# Family -> component -> how the names of its tensors begin. The denoiser of SD3.5 and FLUX.1 stands there
# with its prefix or without.
CHECKPOINT_PARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "sd15": {"unet": _UNET, "vae": _VAE, "text_encoder": ("cond_stage_model.",)},
    "sd21": {"unet": _UNET, "vae": _VAE, "text_encoder": ("cond_stage_model.",)},
    "sdxl": {
        "unet": _UNET,
        "vae": _VAE,
        "text_encoder": ("conditioner.embedders.0.transformer.",),
        "text_encoder_2": ("conditioner.embedders.1.",),
    },
    "sd35": {
        "transformer": (*_UNET, "joint_blocks."),
        "vae": (*_VAE, "vae."),
        "text_encoder": (_CLIP,),
        "text_encoder_2": ("text_encoders.clip_g.",),
        "text_encoder_3": (_T5,),
    },
    "flux1": {
        "transformer": (*_UNET, "double_blocks."),
        "vae": (*_VAE, "vae."),
        "text_encoder": (_CLIP,),
        "text_encoder_2": (_T5,),
    },
}


def parts_in(family: str, names: Iterable[str]) -> set[str]:
    """Components of `family` that a checkpoint with tensors of these names holds."""
    names = list(names)
    table = CHECKPOINT_PARTS[family]
    return {part for part, starts in table.items() if any(name.startswith(starts) for name in names)}


def has_weights(folder: Path, part: str) -> bool:
    """Whether a diffusers folder brings the weights of a component."""
    return any((folder / part).glob("*.safetensors"))


class SingleFile:
    """One checkpoint, as a family loads it; its header is read once.

    Args:
        family: Name of the family.
        file: The checkpoint.
        config: Folder with configs and tokenizers, and the weights that the checkpoint lacks.
    """

    def __init__(self, family: str, file: Path, config: Path) -> None:
        self._file, self._config = file, config
        self._parts = parts_in(family, read_header(file).tensors)

    def holds(self, part: str) -> bool:
        """Whether the weights of a component are in the file; else they are in the folder of configs."""
        return part in self._parts

    def load(self, family: "Family", part: str, cls: Any, options: Mapping[str, Any]) -> Any:
        """A component from the file, through diffusers' converters of the published names.

        Raises:
            BadInput: the converter does not understand the file.
        """
        options = {"config": str(self._config), "local_files_only": True, **options}
        try:
            if hasattr(cls, "from_single_file"):
                return cls.from_single_file(str(self._file), subfolder=part, **options)
            # Text encoders know no single files; their pipeline does, and leaves out what is given as None.
            others = {other: None for other in family.parts if other not in (part, "tokenizer")}
            pipeline = family.pipeline_class().from_single_file(str(self._file), **others, **options)
        except (ValueError, KeyError, RuntimeError) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200].rstrip(". ")
            wrong = f"its {part} cannot be loaded ({reason})"
            raise BadInput(
                self._file.name, wrong, "check that it is a whole checkpoint of its family"
            ) from error
        loaded = getattr(pipeline, part)
        loaded.tie_weights()  # diffusers leaves T5's second name for its embedding without a tensor
        return loaded
