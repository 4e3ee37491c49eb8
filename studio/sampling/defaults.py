"""What a request is drawn with when the person does not say: the base's own size and guidance."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry.errors import BadInput
from registry.files import read_json
from registry.records import Base
from studio.sampling.files import fitting_size, picture_size
from studio.sampling.request import SIDE
from trainers.families import FAMILIES
from trainers.recipe import preset

if TYPE_CHECKING:
    from studio.workspace import Workspace


def default_size(ws: "Workspace", base: Base) -> tuple[int, int]:
    """(width, height) that the base was made for: its denoiser's own size times its VAE's factor.

    A denoiser without a size of its own (FLUX.1) goes by the VAE's.
    """
    denoiser = component_config(ws, base, FAMILIES[base.family].denoiser)
    vae = component_config(ws, base, "vae")
    blocks, own = vae.get("block_out_channels"), denoiser.get("sample_size")
    side = int(own) * 2 ** (len(blocks) - 1) if own and blocks else vae.get("sample_size")
    side = int(side or FAMILIES[base.family].resolution)
    return side, side


def size_for(
    ws: "Workspace",
    base: Base,
    image: Path | tuple[int, int] | None,
    added: tuple[int, ...] = (0, 0, 0, 0),
) -> tuple[int, int]:
    """(width, height) to draw at: the base's own, or the shape of the picture to start from at that area.

    Args:
        ws: Where the base is known.
        base: What draws.
        image: Picture to start from: its file, or (width, height) of it upright.
        added: Pixels that are added to it: left, top, right, bottom.

    Raises:
        BadInput: it is no picture.
    """
    width, height = default_size(ws, base)
    if image is None:
        return width, height
    step = 2 * SIDE if FAMILIES[base.family].flow else SIDE
    if isinstance(image, Path):
        return picture_size(image, width * height, step, added)
    return fitting_size(image, width * height, step, added)


def default_guidance(base: Base) -> float:
    """What the base's own style preset draws its previews with: the pocket base burns its colours at 7."""
    try:
        return preset(base.family, "style", base.name).preview.cfg
    except BadInput:  # a family without a shipped recipe
        return 7.0


def component_config(ws: "Workspace", base: Base, component: str) -> dict[str, Any]:
    """config.json of a component of a local base; empty when it has none."""
    if base.kind == "hub":
        return {}
    folder = ws.resolve(base.config if base.kind == "file" and base.config else base.location)
    path = folder / component / "config.json"
    return read_json(path) if path.is_file() else {}
