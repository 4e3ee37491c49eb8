"""How an export makes LoRA of other methods, and the preview that goes into the file."""

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from registry.errors import BadInput
from registry.formats.convert import ToLora
from registry.formats.operations.edit import thumbnail
from registry.formats.operations.sources import BaseWeights
from registry.formats.peft import WEIGHTS
from registry.records import Adapter, Base, Export
from studio.bases import check_available

if TYPE_CHECKING:
    from studio.workspace import Workspace

METHODS = ("lora",)
THUMBNAIL = "modelspec.thumbnail"
WITH_BASE = ("dora", "oft")  # their change depends on the base's weights


def conversion(
    ws: "Workspace", key: str, method: str, *, rank: int = 0, max_error: float = 0.0, base: str = ""
) -> ToLora | None:
    """How an export makes LoRA of other methods; None = it does not.

    Args:
        ws: The workspace.
        key: Id or name of the adapter.
        method: "lora", or "" for no conversion.
        rank: See `ToLora`.
        max_error: See `ToLora`.
        base: Name of the base for DoRA and OFT; "" = the one that the adapter was trained on.

    Raises:
        NotFound: the base or its files are not there.
        BadInput: the method is unknown, numbers are given without it, or the base is of another family.
    """
    if not method:
        if rank or max_error or base:
            raise BadInput("--rank, --max-error and --base", "say how to convert", "add --convert lora")
        return None
    if method not in METHODS:
        raise BadInput(f"conversion {method!r}", "is unknown", f"use {', '.join(METHODS)}")
    adapter = ws.catalog.get(Adapter, key)
    wanted = base or (adapter.base_id if adapter.method in WITH_BASE else "")
    settings = ToLora(rank, max_error).checked()
    if not wanted:
        return settings
    record = ws.catalog.get(Base, wanted)
    if record.family != adapter.family:
        wrong = f"is {record.family}, adapter {adapter.name} is for {adapter.family or 'no known family'}"
        raise BadInput(f"base {record.name}", wrong, "name a base of its family")
    folder = ws.resolve(record.config) if record.config else None
    weights = BaseWeights(check_available(ws, record), record.family, folder)
    return ToLora(settings.rank, settings.max_error, weights)


def refuse_originals(ws: "Workspace", out: Path, layout: str) -> None:
    """Refuse to export over the file of an adapter, which --overwrite would lose for good.

    A file that was exported may be written anew, also when it was taken in since (from a watched folder).

    Args:
        ws: The workspace.
        out: File to write, with or without its suffix; a folder for peft.
        layout: Of the export.

    Raises:
        BadInput: an adapter's file is there, or the name cannot be kept in the catalog.
    """
    try:
        str(out).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(out).decode("utf-8", "replace")
        raise BadInput(shown, "is a name that is not UTF-8", "choose another name") from None
    places = out.rglob(WEIGHTS) if layout == "peft" else (out, out.with_name(out.name + ".safetensors"))
    # realpath: resolve() raises for a link that leads to itself
    named = [path for place in places for path in (place, Path(os.path.realpath(place)))]
    paths = {ws.relative(path): path for path in named if path.is_file()}
    for place, adapter in ws.catalog.adapters_at(paths).items():
        written = ws.catalog.list(
            Export, path=ws.relative(out if layout == "peft" else paths[place]), limit=1
        )
        if adapter.trashed_at is None and not written:
            raise BadInput(str(paths[place]), f"is the file of adapter {adapter.name}", "choose another name")


def thumbnail_of(ws: "Workspace", adapter: Adapter) -> dict[str, str]:
    """ModelSpec's thumbnail, a small JPEG as a data URL; {} without a preview that can be read."""
    with suppress(BadInput):
        if adapter.preview:
            return {THUMBNAIL: thumbnail(ws.resolve(adapter.preview))}
    return {}
