"""A comparison as files: contact sheet (PNG), page (HTML) and facts (JSON)."""

import io
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from registry.errors import StudioError
from registry.files import atomic_write
from registry.hashing import sha256_file
from registry.records import Base, Comparison, Sample
from studio.compare.arena import Ranking, axes_to_vote_on, ranking
from studio.compare.grids import Cell, cells_of, spec_of
from studio.compare.layout import layout, tables
from studio.compare.page import page_html
from studio.compare.sheet import contact_sheet
from studio.compare.spec import Place

if TYPE_CHECKING:
    from studio.workspace import Workspace

KINDS = ("png", "html", "json")


def export(
    ws: "Workspace", comparison: Comparison, out: Path, *, rows: str = "", columns: str = ""
) -> list[Path]:
    """Write all three into a folder, in place of older ones of the same name.

    Raises:
        BadInput: an axis is not part of the comparison, or the folder cannot be used.
    """
    from studio.sampling.submit import prepare_folder

    prepare_folder(out)
    made = {kind: made_as(ws, comparison, kind, rows=rows, columns=columns) for kind in KINDS}
    files = [out / f"{file_stem(comparison)}.{kind}" for kind in KINDS]
    for file, data in zip(files, made.values(), strict=True):
        atomic_write(file, data)
    return files


def made_as(
    ws: "Workspace", comparison: Comparison, kind: str, *, rows: str = "", columns: str = ""
) -> bytes:
    """The bytes of one of KINDS."""
    spec, cells = spec_of(comparison), cells_of(ws, comparison)
    if kind == "json":
        text = json.dumps(facts(ws, comparison), ensure_ascii=False, indent=2)
        return f"{text}\n".encode()
    laid = tables(spec, layout(spec, rows, columns))
    picture = _pictures(ws, cells)
    if kind == "png":
        stream = io.BytesIO()
        contact_sheet(comparison.name, laid, picture).save(stream, format="PNG")
        return stream.getvalue()
    base = ws.catalog.find(Base, comparison.base_id)
    name = base.name if base else comparison.base_id
    return page_html(comparison.name, name, spec, laid, picture, _rankings(ws, comparison)).encode()


def facts(ws: "Workspace", comparison: Comparison) -> dict[str, Any]:
    """All that is known of a comparison, as JSON types: spec, cells with files and settings, rankings."""
    spec, cells = spec_of(comparison), cells_of(ws, comparison)
    base = ws.catalog.find(Base, comparison.base_id)
    samples = _samples(ws, cells)
    return {
        "id": comparison.id,
        "name": comparison.name,
        "created_at": comparison.created_at.isoformat(),
        "base": {"id": base.id, "name": base.name, "weight_hash": base.weight_hash} if base else None,
        "spec": spec.model_dump(mode="json"),
        "cells": [_cell(ws, cells[place], samples, spec.values_at(place)) for place in sorted(cells)],
        "rankings": {name: found.to_dict() for name, found in _rankings(ws, comparison).items()},
    }


def file_stem(comparison: Comparison) -> str:
    """Its name as files can have it."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", comparison.name).strip("-.") or comparison.id


def _cell(
    ws: "Workspace", cell: Cell, samples: Mapping[str, Sample], values: dict[str, Any]
) -> dict[str, Any]:
    sample = samples.get(cell.sample_id)
    files = [ws.resolve(file) for file in sample.files] if sample else []
    there = [file for file in files if file.is_file()]
    return {
        "place": list(cell.place),
        "values": values,
        "state": cell.state,
        "error": cell.error,
        "sample": cell.sample_id,
        "key": cell.key,
        "file": str(there[0]) if there else "",
        "sha256": sha256_file(there[0]) if there else "",
        "seconds": cell.seconds,
        "adapters": [
            {"id": use.adapter_id, "weight": use.weight, "tensor_sha256": use.tensor_sha256}
            for use in (sample.adapters if sample else ())
        ],
        "request": sample.request if sample else None,
    }


def _samples(ws: "Workspace", cells: Mapping[Place, Cell]) -> dict[str, Sample]:
    ids = tuple({cell.sample_id for cell in cells.values()})
    return {sample.id: sample for sample in ws.catalog.list(Sample, id=ids)}


def _pictures(ws: "Workspace", cells: Mapping[Place, Cell]) -> Callable[[Place], Image.Image | None]:
    """Opens the picture of a cell; one at a time, so that a large comparison needs no memory for all."""
    samples = _samples(ws, cells)

    def picture(place: Place) -> Image.Image | None:
        sample = samples.get(cells[place].sample_id) if place in cells else None
        if sample is None or not sample.files:
            return None
        try:
            with Image.open(ws.resolve(sample.files[0]), formats=("PNG", "JPEG", "WEBP")) as opened:
                return opened.convert("RGB")
        except (OSError, ValueError, StudioError):
            return None

    return picture


def _rankings(ws: "Workspace", comparison: Comparison) -> dict[str, Ranking]:
    """Of the axes that were voted on."""
    found = {name: ranking(ws, comparison, name) for name in axes_to_vote_on(spec_of(comparison))}
    return {name: one for name, one in found.items() if one.votes}
