"""The pocket bases, one a family. Their classes are imported when they are built: they load diffusers."""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from registry.errors import BadInput

if TYPE_CHECKING:
    from studio.pocket.build.kinds.base import Kind


@dataclass(frozen=True)
class Entry:
    """A pocket base.

    Args:
        module: Beside this one.
        class_name: In that module.
        channels: Of its latents; says which autoencoder it has.
        share: Of the time, when one is trained after the other.
        together: Share of the time when all are trained at once on one GPU: the first needs most, so that it
            has the GPU for itself at the end.
    """

    module: str
    class_name: str
    channels: int
    share: float
    together: float


KINDS: dict[str, Entry] = {
    "pocket": Entry("sd15", "PocketSD15", 4, 0.34, 1.0),
    "pocket-xl": Entry("sdxl", "PocketSDXL", 4, 0.22, 0.8),
    "pocket-sd35": Entry("sd35", "PocketSD35", 16, 0.22, 0.8),
    "pocket-flux": Entry("flux1", "PocketFlux1", 16, 0.22, 0.8),
}


def make_kind(name: str) -> "Kind":
    """A pocket base with first weights.

    Raises:
        BadInput: there is none of that name.
    """
    if name not in KINDS:
        raise BadInput(name, "is no pocket base", f"choose of {', '.join(KINDS)}")
    entry = KINDS[name]
    return getattr(import_module(f"{__package__}.{entry.module}"), entry.class_name)()
