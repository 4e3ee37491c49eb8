"""The first half of an import: rows from headers alone.

Rows are written in batches, each one transaction; a row is on disk before it is counted.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from registry.errors import BadInput
from registry.records import Adapter, FileState
from studio.adapters import numbered
from studio.base_links import KnownBases
from studio.imports import strengths
from studio.imports.describers import Describers
from studio.imports.journal import Entry, Journal
from studio.imports.report import ImportReport
from studio.imports.scan import Found

if TYPE_CHECKING:
    from studio.workspace import Workspace

BATCH = 100  # files in a transaction
SETTLED = 5.0  # seconds: a file of a watched folder that changed more recently may still be growing


@dataclass(frozen=True)
class Pending:
    """A listed file that is to be hashed."""

    id: str
    file: Found
    known: bool = False  # its row was there before this import
    again: bool = False  # it has its identity, but the file was touched since
    unidentified: bool = False  # it was counted as such


@dataclass(frozen=True)
class Wishes:
    """How files are taken in."""

    job_id: str
    copy: bool = False
    tags: tuple[str, ...] = ()
    watched: bool = False  # leave files alone that are still being written
    sources: tuple[tuple[Path, str], ...] = ()  # downloaded file, the address it came from


class Lister:
    """Turns found files into rows.

    Args:
        ws: The workspace.
        wishes: How.
        journal: What earlier readings brought.
        report: Gets the counts.
        describers: Read the headers.
    """

    def __init__(
        self,
        ws: "Workspace",
        wishes: Wishes,
        journal: Journal,
        report: ImportReport,
        describers: Describers,
    ) -> None:
        self._ws, self._wishes, self._journal, self._report = ws, wishes, journal, report
        self._describers = describers
        self._numbers: dict[str, Iterator[str]] = {}
        self._addresses = dict(wishes.sources)
        self._bases = KnownBases(ws)

    def list_all(self, files: Iterable[Found]) -> Iterator[list[Pending]]:
        """Batch by batch, what is to be hashed; its rows are durable."""
        waiting = iter(files)
        while batch := list(islice(waiting, BATCH)):
            self._report.files += len(batch)
            yield self._list(batch)

    def _list(self, batch: list[Found]) -> list[Pending]:
        places = {file.path: self._ws.relative(file.path) for file in batch if not file.error}
        rows = self._ws.catalog.adapters_at(places.values())
        entries = {file.path: entry for file in batch if (entry := self._journal.find(file))}
        same = self._ws.catalog.adapters_with([e.tensor_sha256 for e in entries.values() if e.tensor_sha256])
        pending: list[Pending] = []
        new: list[Found] = []
        for file in batch:
            row = None if file.error else rows.get(places[file.path])
            if file.error:
                self._report.add("bad", str(file.path), file.error)
            elif row is not None and row.trashed_at is None:
                pending += self._again(row, file)
            elif not self._is_read(entries.get(file.path), same, file) and self._is_settled(file):
                new.append(file)
        self._tag([row for row in rows.values() if row.trashed_at is None])
        return pending + self._add(self._describe(new, places))

    def _tag(self, known: list[Adapter]) -> None:
        """Who takes a folder in with a tag means all that is in it."""
        wanted = self._wishes.tags
        changes = {
            row.id: {"tags": tuple(dict.fromkeys([*row.tags, *wanted]))}
            for row in known
            if not set(wanted) <= set(row.tags)
        }
        if changes:
            self._ws.catalog.update_each(changes)

    def _again(self, row: Adapter, file: Found) -> list[Pending]:
        """A file whose path has a row."""
        ours = row.metadata.get("import", {}).get("job") == self._wishes.job_id
        if ours:
            self._count(row, file)
        else:
            self._report.known += 1
            self._learn(row, file)
        if row.file_state is FileState.NEW:
            return [Pending(row.id, file, known=not ours, unidentified=ours and not row.family)]
        if ours:
            self._report.hashed += 1
        elif (row.size, row.mtime_ns) != (file.size, file.mtime_ns):
            return [Pending(row.id, file, known=True, again=True)]
        return []

    def _learn(self, row: Adapter, file: Found) -> None:
        """A configuration that was put beside a known file since says how strong it is."""
        try:
            changes = strengths.learned(row, file.path)
        except BadInput as error:
            self._report.add("notes", str(file.path), str(error))
            return
        if changes:
            self._ws.catalog.update_each({row.id: changes})
            line = f"the strength of {row.name} is known now: alpha {changes['alpha']:g}, rank {row.rank}"
            self._report.add("notes", str(file.path), line)

    def _is_read(self, entry: Entry | None, same: dict[str, list[Adapter]], file: Found) -> bool:
        """Whether the file needs no row because it was read before."""
        if entry is None:
            return False
        ours = entry.job == self._wishes.job_id
        if entry.error:
            self._report.add("bad", str(file.path), entry.error)
            return True
        twins = [a for a in same.get(entry.tensor_sha256, ()) if a.trashed_at is None]
        if not twins or twins[0].file_state in {FileState.MISSING, FileState.CHANGED}:
            return False
        if not ours:
            self._report.known += 1
            self._learn(twins[0], file)
        elif entry.kind == "copied":
            self._count(twins[0], file)
            self._report.hashed += 1
        else:
            self._report.add(entry.kind, str(file.path), twins[0].name)
        return True

    def _is_settled(self, file: Found) -> bool:
        if not self._wishes.watched or time.time() - file.mtime_ns / 1e9 > SETTLED:
            return True
        self._report.unsettled += 1
        return False

    def _describe(self, files: list[Found], places: Mapping[Path, str]) -> list[tuple[Found, Adapter]]:
        described = self._describers.describe(files, [self._addresses.get(f.path, "") for f in files])
        made: list[tuple[Found, Adapter]] = []
        for file, found in zip(files, described, strict=True):
            if isinstance(found, str):
                self._report.add("bad", str(file.path), found)
                continue
            row, beside = found
            for line in filter(None, (*beside.wrong, strengths.told(row))):
                self._report.add("notes", str(file.path), line)
            made.append((file, replace(row, path=places[file.path], **self._bases.link(row))))
        return made

    def _add(self, made: list[tuple[Found, Adapter]]) -> list[Pending]:
        if not made:
            return []
        files = {row.path: file for file, row in made}
        taken = self._ws.catalog.adapter_names([row.name for _, row in made])
        named: list[Adapter] = []
        for _, row in made:
            name = row.name if row.name not in taken else self._free_name(row.name, taken)
            taken.add(name)
            named.append(row if name == row.name else replace(row, name=name))
        rows = self._ws.catalog.add_listed(named)
        for row in rows:
            self._count(row, files[row.path])
        return [Pending(row.id, files[row.path], unidentified=not row.family) for row in rows]

    def _count(self, row: Adapter, file: Found) -> None:
        self._report.listed += 1
        if not row.family:
            reason = str(row.metadata.get("identified", {}).get("reason", ""))
            self._report.add("unidentified", str(file.path), reason)

    def _free_name(self, name: str, taken: set[str]) -> str:
        """The next of "name 2", "name 3", ... ; a thousand files of one name do not begin at 2 each time."""
        if name not in self._numbers:
            self._numbers[name] = islice(numbered(name), 1, None)
        for candidate in self._numbers[name]:
            if candidate not in taken and not self._ws.catalog.adapter_names([candidate]):
                return candidate
        raise AssertionError("numbers do not end")
