"""Which base an imported adapter was trained on: by the hashes that its file names, never by a file's name.

| in the metadata | whose | what it is |
|---|---|---|
| `studio.base_hash` | our own | the base's weight hash |
| `ss_new_sd_model_hash` | kohya, OneTrainer; our own | sha256 of the base's file, or our weight hash |
| `ss_sd_model_hash` | kohya | 8 digits of a window's: 64 KiB from 1 MiB on; elsewhere 10 of the file's |

Eight digits of a window are what merges of one model have in common, so they count only where nothing better
is named, and where exactly one base has them.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from registry.errors import StudioError
from registry.records import Adapter, Base

if TYPE_CHECKING:
    from studio.workspace import Workspace

KEYS = ("studio.base_hash", "ss_new_sd_model_hash", "ss_sd_model_hash")
SHORT = 8  # digits of the window's hash
_HASH = re.compile(r"(?:0x)?([0-9a-f]{8}|[0-9a-f]{10,64})")
_WINDOW = (0x100000, 0x10000)


def named_hashes(metadata: Mapping[str, str]) -> dict[str, str]:
    """Hashes of the base that a file names, by key; what is no hash is left out."""
    found = {key: _HASH.fullmatch(metadata.get(key, "").strip().lower()) for key in KEYS}
    return {key: match[1] for key, match in found.items() if match}


@dataclass(frozen=True)
class _Known:
    """A base and its hashes."""

    base: Base
    whole: frozenset[str]
    window: str


class KnownBases:
    """The bases of a workspace by their hashes, which are looked up when the first adapter names one.

    Args:
        ws: The workspace.
        bases: Only these; None = all.
    """

    def __init__(self, ws: "Workspace", bases: Iterable[Base] | None = None) -> None:
        self._ws, self._bases = ws, bases
        self._hashes: list[_Known] | None = None

    @property
    def known(self) -> list[_Known]:
        """All of them, the oldest first."""
        if self._hashes is None:
            bases = self._ws.catalog.list(Base, order="created_at") if self._bases is None else self._bases
            self._hashes = [self._known(base) for base in bases]
        return self._hashes

    def link(self, row: Adapter) -> dict[str, Any]:
        """Fields of an adapter that say its base and why; {} where that stays open.

        A family that was not known is the base's, where a whole hash says so.
        """
        if row.base_id:
            return {}
        named = cast("dict[str, str]", row.metadata.get("base_hashes") or {})
        whole = {key: value for key, value in named.items() if len(value) > SHORT}
        for key, value in (whole or named).items():
            fitting = [item.base for item in self.known if _fits(item, value)]
            models = {base.weight_hash for base in fitting}
            if not fitting or (len(value) == SHORT and len(models) > 1):
                continue
            base = fitting[0]
            if row.family not in (("", base.family) if whole else (base.family,)):
                continue
            return _changes(row, base, key, value)
        return {}

    def _known(self, base: Base) -> _Known:
        whole = {base.weight_hash} - {""}
        window = ""
        if base.kind == "file":
            with suppress(OSError, StudioError):
                path = self._ws.resolve(base.location)
                whole.add(self._ws.memo.sha256(path))
                with path.open("rb") as stream:
                    stream.seek(_WINDOW[0])
                    window = hashlib.sha256(stream.read(_WINDOW[1])).hexdigest()[:SHORT]
        return _Known(base, frozenset(whole), window)


def link_adapters(ws: "Workspace", base: Base) -> int:
    """Link the imported adapters that name `base`, which is new; how many there were."""
    (known,) = KnownBases(ws, [base]).known
    signs = {value[:10] for value in known.whole} | ({known.window} - {""})
    rows = {row.id: row for sign in signs for row in ws.catalog.adapters_naming(sign)}
    everything = KnownBases(ws)  # of two bases with these digits neither counts
    changes = {row.id: found for row in rows.values() if (found := everything.link(row))}
    if changes:
        ws.catalog.update_each(changes)
    return len(changes)


def _fits(known: _Known, value: str) -> bool:
    if len(value) == SHORT:
        return value == known.window
    return any(whole.startswith(value) for whole in known.whole)


def _changes(row: Adapter, base: Base, key: str, value: str) -> dict[str, Any]:
    digits = f" (the {SHORT} digits of a part of it)" if len(value) == SHORT else ""
    why = f"{key} {value[:12]} is the hash of base {base.name}{digits}"
    metadata = row.metadata | {"base_link": {"key": key, "why": why}}
    changes: dict[str, Any] = {"base_id": base.id, "metadata": metadata}
    if not row.family:
        said = {"confidence": "medium", "reason": f"{why}, which is {base.family}"}
        changes |= {"family": base.family, "metadata": metadata | {"identified": said}}
    return changes
