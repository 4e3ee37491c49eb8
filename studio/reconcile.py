"""Where rows and files disagree: found and said, never repaired behind a person's back.

A file without a row may be all that is left after an older catalog was restored, so nothing is deleted here.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from registry.errors import several
from registry.files import TEMPORARY
from registry.records import Adapter, Base, Image, Run, Sample

if TYPE_CHECKING:
    from studio.workspace import Workspace

_SETTLED = 60.0  # seconds: a younger file may be about to get its row


@dataclass(frozen=True)
class Orphan:
    """One disagreement: `kind` of record, its id (or the name on disk), the path, and a line for people."""

    kind: str
    id: str
    path: Path
    wrong: str
    do: str


def orphans(ws: "Workspace") -> list[Orphan]:
    """Everything in the workspace that is a row without its file, or a file without its row."""
    return [*_adapters(ws), *_runs(ws), *_samples(ws), *_pictures(ws), *_bases(ws)]


def _adapters(ws: "Workspace") -> Iterator[Orphan]:
    known: set[Path] = set()
    for adapter in ws.catalog.list(Adapter):
        path = ws.resolve(adapter.path)
        known.add(path)
        if adapter.trashed_at is None and not path.is_file():
            do = f"import it from where it is now, or `studio adapters trash {adapter.id}`"
            yield Orphan("adapter", adapter.id, path, f"the file of {adapter.name!r} is missing", do)
    for path in sorted((ws.home / "adapters").glob("*.safetensors")):
        if path not in known and _is_settled(path):
            do = "move it away; nothing in the catalog uses it"
            yield Orphan("adapter", path.stem, path, "is not in the catalog", do)


def _runs(ws: "Workspace") -> Iterator[Orphan]:
    known = {run.id: run for run in ws.catalog.list(Run)}
    for run in known.values():
        folder = ws.run_dir(run.id).path
        if not folder.is_dir():
            yield Orphan(
                "run", run.id, folder, f"the folder of {run.name!r} is missing", "it cannot be resumed"
            )
    yield from _folders_without_row(ws.home / "runs", "run", set(known))


def _samples(ws: "Workspace") -> Iterator[Orphan]:
    known = ws.catalog.list(Sample)
    for sample in known:
        missing = [name for name in sample.files if not ws.resolve(name).is_file()]
        if missing:
            wrong = f"{len(missing)} of {several(len(sample.files), 'picture')} missing"
            yield Orphan("sample", sample.id, ws.resolve(missing[0]), wrong, "sample again with its settings")
    yield from _folders_without_row(ws.home / "samples", "sample", {sample.id for sample in known})


def _pictures(ws: "Workspace") -> Iterator[Orphan]:
    for image in ws.catalog.list(Image):
        path = ws.blobs.path(image.blob)
        if not path.is_file():
            yield Orphan("picture", image.id, path, f"the file of {image.name!r} is missing", "add it again")


def _bases(ws: "Workspace") -> Iterator[Orphan]:
    for base in ws.catalog.list(Base):
        if base.kind != "hub" and not ws.resolve(base.location).exists():
            path = ws.resolve(base.location)
            yield Orphan(
                "base", base.id, path, f"the base {base.name!r} is missing", "put it back or remove it"
            )


def _folders_without_row(root: Path, kind: str, known: set[str]) -> Iterator[Orphan]:
    for folder in sorted(path for path in root.glob("*/") if not path.name.endswith(TEMPORARY)):
        if folder.name not in known and _is_settled(folder):
            yield Orphan(kind, folder.name, folder, "is not in the catalog", "look inside, then move it away")


def _is_settled(path: Path) -> bool:
    return time.time() - path.stat().st_mtime > _SETTLED
