"""From a picture to the map of its kind."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from PIL import Image

from studio.sampling.control.kinds import control_kind

if TYPE_CHECKING:
    import torch


def make_map(kind: str, picture: Image.Image, *, model: str = "", device: "torch.device") -> Image.Image:
    """The map of a picture, of its size.

    Args:
        kind: A key of KINDS.
        picture: RGB, at the size of the drawing.
        model: Folder or hub id for kinds that need a model; "" = the kind's own.
        device: Where the model runs.

    Raises:
        BadInput: the model is not there, or another one.
    """
    row = control_kind(kind)
    module, _, name = row.function.partition(":")
    function: Any = getattr(import_module(f"{__package__}.{module}"), name)
    return function(picture, model or row.model, device) if row.model else function(picture)
