"""Several adapters at once: trash and back, export. One that fails does not stop the others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZIP_STORED, ZipFile

from registry.errors import BadInput, StudioError
from registry.files import atomic_path, file_stem, require_space
from registry.records import Adapter
from studio import adapters

if TYPE_CHECKING:
    from registry.formats.convert import ToLora
    from registry.search import AdapterQuery
    from studio.workspace import Workspace


@dataclass(frozen=True)
class ManyReport:
    """What became of each adapter: what was done, and the error line of those it could not be done for."""

    done: list[Any] = field(default_factory=list[Any])
    failed: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])  # (id, error line)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        failed = [{"id": id, "error": error} for id, error in self.failed]
        return {"done": self.done, "failed": failed}


def chosen(ws: "Workspace", keys: Sequence[str], query: "AdapterQuery | None" = None) -> list[str]:
    """Ids of the adapters that are named, or of all that a query finds.

    Raises:
        BadInput: both or neither are given, or a key fits several.
        NotFound: there is no adapter of that name.
    """
    if (query is None) == (not keys):
        raise BadInput(
            "adapters", "are named both ways, or not at all", "name some, or give --query or --filter"
        )
    if query is not None:
        return ws.catalog.adapter_ids(query)
    return list(dict.fromkeys(ws.catalog.get(Adapter, key).id for key in keys))


def trash_many(ws: "Workspace", ids: Sequence[str]) -> ManyReport:
    """Put adapters into the trash; `done` are their ids."""
    return _each(ids, lambda id: adapters.trash(ws, id).id)


def restore_many(ws: "Workspace", ids: Sequence[str]) -> ManyReport:
    """Take adapters out of the trash; `done` are their ids."""
    return _each(ids, lambda id: adapters.restore(ws, id).id)


def export_many(
    ws: "Workspace", ids: Sequence[str], layout: str, folder: Path, *,
    conversion: "Callable[[str], ToLora | None]" = lambda _: None, **options: Any,
) -> ManyReport:  # fmt: skip
    """Write adapters into `folder`, each under its name and proven; `done` are the reports.

    Two of one name get a number. Options are those of `studio.adapters.export`; `conversion` gives its
    `convert` for each id.

    Raises:
        BadInput: `folder` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise BadInput(str(folder), "is a file", "name a folder for several adapters")
    folder.mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()

    def write(id: str) -> dict[str, Any]:
        stems = map(file_stem, adapters.numbered(ws.catalog.get(Adapter, id).name))
        name = next(stem for stem in stems if stem.casefold() not in taken)
        taken.add(name.casefold())
        out = folder / (name if layout == "peft" else f"{name}.safetensors")
        report = adapters.export(ws, id, layout, out, convert=conversion(id), **options)
        return {"id": id, **report.to_dict()}

    return _each(ids, write)


def pack(folder: Path) -> Path:
    """All files of `folder` in one zip beside it, not compressed: weights do not shrink.

    Raises:
        StudioError: the disk is full.
    """
    out = folder.with_name(f"{folder.name}.zip")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    require_space(out.parent, sum(path.stat().st_size for path in files), "the zip")
    with atomic_path(out) as temporary, ZipFile(temporary, "w", ZIP_STORED) as archive:
        for path in files:
            archive.write(path, path.relative_to(folder.parent).as_posix())
    return out


def _each(ids: Sequence[str], work: Callable[[str], Any]) -> ManyReport:
    report = ManyReport()
    for id in ids:
        try:
            report.done.append(work(id))
        except StudioError as error:
            report.failed.append((id, str(error)))
    return report
