"""Which network of the catalog reads a control picture, before anything is queued. No torch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from registry.errors import BadInput, NotFound
from registry.records import Base
from studio.bases import list_parts
from studio.control_facts import PART_LABELS
from studio.sampling.control.kinds import ANY, HOLE, UNION, control_kind
from trainers.families import FAMILIES

if TYPE_CHECKING:
    from studio.sampling.request_control import ControlChoice
    from studio.workspace import Workspace


def choose_net(ws: "Workspace", base: Base, choice: "ControlChoice") -> Base:
    """The network that a choice names, or the only one in the catalog that reads its kind.

    Raises:
        NotFound: it is not in the catalog, or its files are gone.
        BadInput: it is for another family or of another kind; none or several read this kind.
    """
    kind = control_kind(choice.kind)
    thing = f"control {choice.kind}"
    if choice.kind == HOLE and FAMILIES[base.family].flow:
        raise BadInput(thing, "is for bases with a UNet", "use a mask without it")
    net = _named(ws, base, choice.model) if choice.model else _only(ws, base, choice.kind)
    if net.variant == UNION and choice.kind != "none" and base.family not in kind.modes:
        label = FAMILIES[base.family].label
        raise BadInput(thing, f"is nothing that union networks of {label} read", "choose another kind")
    if net.kind != "hub" and not ws.resolve(net.location).exists():
        place = ws.resolve(net.location)
        raise NotFound(
            f"{PART_LABELS[net.part]} {net.name}", f"is no longer at {place}", "put it back, or add it again"
        )
    return net


def mode_of(net: Base, kind: str) -> int | None:
    """Number by which a union network is told a kind; None for others."""
    return control_kind(kind).modes.get(net.family, 0) if net.variant == UNION else None


def automatic(parts: Sequence[Base], family: str, kind: str) -> list[Base]:
    """Networks that a kind is given to when none is named: made for it, else those of several kinds."""
    found = [net for net in parts if net.variant == kind]
    if not found and kind != "none":
        modes = control_kind(kind).modes
        found = [net for net in parts if net.variant == UNION and family in modes]
    return found


def readers(parts: Sequence[Base], family: str, kind: str) -> list[Base]:
    """Networks that may be chosen for a kind: also those whose names do not say what they read."""
    if kind == HOLE and FAMILIES[family].flow:
        return []
    if kind == "none":  # a finished map of any kind
        return list(parts)
    union = family in control_kind(kind).modes
    return [net for net in parts if net.variant in (kind, ANY) or (net.variant == UNION and union)]


def _named(ws: "Workspace", base: Base, key: str) -> Base:
    net = ws.catalog.get(Base, key)
    if net.part not in PART_LABELS:
        raise BadInput(f"base {net.name}", "is no ControlNet", "choose one: `studio bases list`")
    if net.family != base.family:
        theirs, ours = FAMILIES[net.family].label, FAMILIES[base.family].label
        wrong = f"is for {theirs}, base {base.name} is {ours}"
        raise BadInput(f"{PART_LABELS[net.part]} {net.name}", wrong, "choose one for its family")
    return net


def _only(ws: "Workspace", base: Base, kind: str) -> Base:
    label = FAMILIES[base.family].label
    parts = list_parts(ws, base.family)
    found = automatic(parts, base.family, kind)
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(net.name for net in found)
        raise BadInput(f"control {kind}", f"is read by {len(found)} networks", f"name one of {names}")
    others = ", ".join(net.name for net in parts if net.variant == ANY) or ", ".join(n.name for n in parts)
    wrong = f"has no network for {label} in the catalog"
    do = f"name one of {others}, or add one" if others else "add one"
    raise BadInput(f"control {kind}", wrong, f"{do}: `studio bases add NAME LOCATION`")
