"""How much of an adapter has a place in a base, from the headers of their files, before anything is queued.

Only what is certain is counted: layers of components whose weights are at hand. Norms and lone biases, and
bases that are still at the hub, are left to the sampler, which says afterwards what it could not place.
"""

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from registry.errors import BadInput, several
from registry.formats.header import Header, read_header, shown
from registry.formats.internal import component_of
from registry.formats.operations.sources import BaseWeights, Place
from registry.formats.peft_config import PeftConfig
from registry.formats.plain import layers_in, plain_layout
from registry.records import Adapter, Base

if TYPE_CHECKING:
    from collections.abc import Sequence

    from studio.workspace import Workspace

_NAMED = 3  # names in a message


@dataclass(frozen=True)
class Coverage:
    """What of an adapter the base has a place for.

    Args:
        matched: How many layers, or other modules.
        unmatched: Those that the base has not.
        dropped: Keys of the file that nobody understands.
    """

    matched: int
    unmatched: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether all of it acts."""
        return not self.unmatched and not self.dropped

    @property
    def total(self) -> int:
        """Layers of the adapter."""
        return self.matched + len(self.unmatched)


def coverage(ws: "Workspace", adapter: Adapter, base: Base, weights: BaseWeights | None = None) -> Coverage:
    """What of `adapter` the base has a place for; of a base at the hub only what is not understood is known.

    Raises:
        BadInput: a file is unsound.
    """
    layers, unknown = layers_in(_header(ws, adapter), base.family)
    weights = weights or base_weights(ws, base)
    if weights is None:
        return Coverage(len(layers), (), tuple(unknown))
    known = {component_of(module) for module in weights.places}
    whole = base.kind == "folder"  # then it lacks what it does not bring
    missing = [
        module for module in layers if module not in weights and (whole or component_of(module) in known)
    ]
    return Coverage(len(layers) - len(missing), tuple(missing), tuple(unknown))


def require_places(
    ws: "Workspace", adapters: "Sequence[Adapter]", base: Base, *, partial: bool = False
) -> None:
    """Refuse adapters of other sides than the base's; ask before drawing with less than the whole of one.

    Args:
        ws: The workspace.
        adapters: Of the base's family.
        base: What is drawn with.
        partial: It was asked, and the rest is enough.

    Raises:
        BadInput: names the first that have no place, or one of other sides.
    """
    weights = base_weights(ws, base) if adapters else None
    for adapter in adapters:
        if weights is not None:
            _require_sides(ws, adapter, base, weights)
        if partial:
            continue
        found = coverage(ws, adapter, base, weights)
        if found.complete:
            continue
        if found.total and not found.matched:
            wrong = "has no module that is part of this base"
            raise BadInput(f"adapter {adapter.name}", wrong, "choose another base")
        parts: list[str] = []
        if found.unmatched:
            count = f"{len(found.unmatched)} of {several(found.total, 'module')}"
            parts.append(f"{count} have no place in base {base.name} ({_first(found.unmatched)})")
        if found.dropped:
            parts.append(f"{several(len(found.dropped), 'key')} not understood ({_first(found.dropped)})")
        do = "allow to draw with the rest: --partial, on the page under More"
        raise BadInput(f"adapter {adapter.name}", ", ".join(parts), do)


def _require_sides(ws: "Workspace", adapter: Adapter, base: Base, weights: BaseWeights) -> None:
    """Of plain LoRA only; what other methods change is left to the sampler."""
    tensors = _header(ws, adapter).tensors
    layout = plain_layout(base.family, tuple(tensors))
    for part in layout.modules if layout else ():
        modules = [f"{part.component}.{module}" for module in part.place.modules]
        if not all(module in weights and _is_plain(weights.places[module]) for module in modules):
            continue
        rows, columns = tensors[part.up].shape[0], prod(tensors[part.down].shape[1:])
        out = sum(weights.shape(module)[0] for module in modules)
        into = prod(weights.shape(modules[0])[1:])
        if (rows, columns) != (out, into):
            wrong = f"does not fit base {base.name}: {part.module} is {columns} -> {rows} in the adapter"
            do = "use the base it was trained on"
            raise BadInput(f"adapter {adapter.name}", f"{wrong} and {into} -> {out} in the base", do)


def _is_plain(place: Place) -> bool:
    """Whether its tensor has a row for each output: weights packed into bytes have not."""
    return place.info.dtype.startswith(("F", "BF"))


def base_weights(ws: "Workspace", base: Base) -> BaseWeights | None:
    """Names and shapes of the base's layers; None when they are not at hand."""
    if base.kind == "hub":
        return None
    extra = ws.resolve(base.config) if base.kind == "file" and base.config else None
    try:
        return BaseWeights(ws.resolve(base.location), base.family, extra)
    except BadInput:  # the sampler loads some that cannot be looked through
        return None


def _header(ws: "Workspace", adapter: Adapter) -> Header:
    """Of the adapter's file; a folder of PEFT's says which text encoder its names are in."""
    header = read_header(ws.resolve(adapter.path))
    peft = PeftConfig.from_json(adapter.metadata.get("peft"))
    if peft is None:
        return header
    return Header({peft.name(key): info for key, info in header.tensors.items()}, header.metadata)


def _first(names: "Sequence[str]") -> str:
    rest = ", ..." if len(names) > _NAMED else ""
    return ", ".join(shown(name).strip("'") for name in names[:_NAMED]) + rest
