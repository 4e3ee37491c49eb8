"""X-rays that are kept, by the weights that were looked at: a new name or place costs nothing."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry.errors import StudioError
from registry.files import read_json, write_json
from registry.hashing import hash_json
from registry.records import Adapter, Base
from studio.adapter_files import settled
from studio.exporting import WITH_BASE

if TYPE_CHECKING:
    from studio.workspace import Workspace

VERSION = 1  # of what is kept
STRONGEST = 8  # modules that are kept, by the size of their change


def kept(ws: "Workspace", adapters: Sequence[Adapter], base: str = "") -> dict[str, Any] | None:
    """What `look` found earlier; None when it has not looked yet. Reads one small file."""
    if not all(adapter.tensor_sha256 for adapter in adapters):
        return None
    with suppress(OSError, StudioError):
        found: dict[str, Any] = read_json(_place(ws, adapters, base))
        return found
    return None


def look(ws: "Workspace", adapters: Sequence[Adapter], base: str = "") -> dict[str, Any]:
    """See through adapters, and keep what was found in the workspace's cache.

    Args:
        ws: The workspace.
        adapters: One, or two that are compared.
        base: Id or name; DoRA and OFT need it, their own is taken when nothing is said.

    Returns:
        {"adapters": [...], "similarity": [...]} in the order given, as `operations.xray` has them, without
        names and with the STRONGEST modules only.

    Raises:
        NotFound: no such adapter or base, or a file is gone.
        BadInput: families differ, or a method needs the base.
    """
    adapters = [settled(ws, adapter) for adapter in adapters]
    found = kept(ws, adapters, base)
    if found is not None:
        return found
    from studio.operations import xray

    seen = xray(ws, [adapter.id for adapter in adapters], base=base)
    found = {
        "adapters": [_short(item) for item in seen["adapters"]],
        "similarity": [_without(pair, "a", "b", "modules") for pair in seen["similarity"]],
    }
    with suppress(OSError, StudioError):  # a workspace that cannot be written to looks again next time
        path = _place(ws, adapters, base)
        path.parent.mkdir(exist_ok=True)
        write_json(path, found, durable=False)
    return found


def _place(ws: "Workspace", adapters: Sequence[Adapter], base: str) -> Path:
    """Where it is kept; a base counts only for methods whose change depends on it."""
    keys = {base or adapter.base_id for adapter in adapters if adapter.method in WITH_BASE}
    found = [ws.catalog.find(Base, key) for key in sorted(keys) if key]
    hashes = [record.weight_hash for record in found if record]
    pefts = [peft for adapter in adapters if (peft := adapter.metadata.get("peft"))]
    name = hash_json([VERSION, [adapter.tensor_sha256 for adapter in adapters], hashes, *pefts])
    return ws.home / "cache" / "xrays" / f"{name}.json"


def _short(item: dict[str, Any]) -> dict[str, Any]:
    strongest = sorted(item["modules"], key=lambda module: -module["norm"])[:STRONGEST]
    ranks = [module["rank"] for module in item["modules"]]
    counted = {"count": len(ranks), "rank": max(ranks, default=0)}
    return _without(item, "id", "name") | counted | {"modules": strongest}


def _without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}
