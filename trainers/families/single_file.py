"""Single-file checkpoints: how each component comes out of one.

What a checkpoint lacks (FLUX.1 and SD3.5 are often published as the transformer alone) is taken from the
folder of configs, if that brings the weights.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry.errors import BadInput
from registry.formats.checkpoints import parts_of_file

if TYPE_CHECKING:
    from trainers.families.base import Family


class SingleFile:
    """One checkpoint, as a family loads it; its header is read once.

    Args:
        family: Name of the family.
        file: The checkpoint.
        config: Folder with configs and tokenizers, and the weights that the checkpoint lacks.
    """

    def __init__(self, family: str, file: Path, config: Path) -> None:
        self._file, self._config = file, config
        self._parts = parts_of_file(family, file)

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
