"""The catalog: the one door to the database.

Every method is one short transaction that takes and returns frozen records. Writers wait for each other at
their start (`registry.journal`); what a method returned is on disk.
"""

import builtins
import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from registry import jobs, schema
from registry.adapter_catalog import AdapterCatalog
from registry.arrivals import Arrivals
from registry.errors import BadInput, StudioError
from registry.faults import person_errors
from registry.grids import Grids
from registry.ids import new_id
from registry.journal import open_engine, parse_url, set_journal
from registry.lineage import Lineage, insert_run_images
from registry.queries import (
    NAMES,
    check_fields,
    check_unused,
    conditions,
    exchange_images,
    find_row,
    insert_dataset,
    release_imports,
    sort_keys,
    why_missing,
)  # fmt: skip
from registry.records import (
    JSON,
    PICKERS,
    Adapter,
    Base,
    Checkpoint,
    Comparison,
    Dataset,
    Evaluation,
    Export,
    Image,
    Job,
    JobKind,
    JobState,
    Run,
    RunImage,
    RunState,
    Sample,
    SavedFilter,
    Vote,
    Watch,
)  # fmt: skip
from registry.sessions import as_stored
from registry.tables import ROWS, JobRow, RunRow

R = TypeVar(
    "R", Base, Dataset, Image, Run, Checkpoint, Adapter, Sample, Job, Export, SavedFilter, Watch, Comparison,
    Vote, Evaluation,
)  # fmt: skip
_log = logging.getLogger(__name__)


class Catalog(AdapterCatalog, Arrivals):
    """All records of a workspace. Make one with `Catalog.open`; safe to share between threads."""

    def __init__(self, engine: Engine, *, where: str, backups: Path, read_only: bool, reason: str) -> None:
        super().__init__(engine, where=where, backups=backups, read_only=read_only, reason=reason)
        self.lineage = Lineage(self._read, self._write)  # where things come from
        self.grids = Grids(self._read, self._insert)  # cells of comparisons

    @classmethod
    def open(cls, url: str, *, backups: Path | None = None) -> "Catalog":
        """Open the database, making or migrating it as needed (after a backup).

        A damaged catalog, or one in a folder that cannot be written, opens read-only; `reason` says why.

        Args:
            url: `sqlite:////folder/catalog.sqlite` or `postgresql://user@host/name`.
            backups: Folder for backups of an SQLite catalog; default: `backups` beside it.

        Raises:
            BadInput: the file is no catalog, or was written by a newer version.
            Damaged: nothing in it can be read; names the newest backup.
        """
        parsed = parse_url(url)
        if parsed.get_backend_name() != "sqlite":
            where = parsed.render_as_string(hide_password=True)
            with person_errors(where, Path()):
                schema.upgrade(parsed, None)
                engine = open_engine(parsed)
            return cls(engine, where=where, backups=backups or Path(), read_only=False, reason="")
        path = Path(str(parsed.database)).absolute()
        backups = backups or path.parent / "backups"
        schema.check_file(path, backups)
        reason = schema.why_read_only(path, backups)
        with person_errors(str(path), backups):
            if reason:
                _log.warning("%s", reason)
            else:
                schema.upgrade(parsed, backups)
                set_journal(path)
            engine = open_engine(parsed, read_only=bool(reason))
            schema.require_current(engine, path)
        return cls(engine, where=str(path), backups=backups, read_only=bool(reason), reason=reason)

    # --- records of any kind

    def add(self, record: R) -> R:
        """Add a record, with a fresh id when it has none.

        Raises:
            BadInput: the name is taken, or something it refers to does not exist.
        """
        return self.add_all([record])[0]

    def add_all(self, records: Sequence[R]) -> builtins.list[R]:
        """Add several records in one transaction: all or none."""

        def insert(session: Session) -> builtins.list[R]:
            made = [record if record.id else replace(record, id=new_id()) for record in records]
            session.add_all([ROWS[type(record)].of(record) for record in made])
            return made

        return self._insert(insert)

    def get(self, kind: type[R], key: str) -> R:
        """The record with this id, unique id prefix of at least 4 characters, or name.

        Raises:
            NotFound: there is none; says what there is.
            BadInput: the name or prefix fits several; names their ids.
        """
        found = self.find(kind, key)
        if found is None:
            with self._read() as session:
                raise why_missing(session, kind, key)
        return found

    def find(self, kind: type[R], key: str) -> R | None:
        """Like `get`, but None when there is no such record."""
        with self._read() as session:
            row = find_row(session, kind, key)
            return row.to_record() if row else None

    def list(
        self, kind: type[R], /, *, order: str = "", limit: int | None = None, offset: int = 0, **equals: Any
    ) -> builtins.list[R]:
        """Records whose fields equal the given values; a tuple, list or set means any of its members.

        Args:
            kind: Record class.
            order: Field to sort by, with "-" for descending; default: newest first, pictures by position.
            limit: At most so many.
            offset: Leave out so many.
            equals: Field = value.
        """
        row = ROWS[kind]
        query = select(row).where(*conditions(row, equals)).order_by(*sort_keys(kind, order))
        query = query.limit(limit).offset(offset or None)
        with self._read() as session:
            return [found.to_record() for found in session.scalars(query)]

    def count(self, kind: type[R], /, **equals: Any) -> int:
        """How many records have the given values."""
        row = ROWS[kind]
        with self._read() as session:
            return session.scalar(select(func.count(row.id)).where(*conditions(row, equals))) or 0

    def update(self, kind: type[R], id: str, /, **changes: Any) -> R:
        """Change fields of a record.

        Raises:
            NotFound: there is no record with this id.
            BadInput: the new name is taken, or what it now refers to does not exist.
        """
        check_fields(kind, changes)
        with self._write() as session:
            row = self._row(session, kind, id)
            row.assign(changes)
            return as_stored(session, row)

    def delete(self, kind: type[R], id: str) -> None:
        """Remove a record and what belongs to it: a data set's pictures, a run's checkpoints, its jobs.

        A data set may go at any time: runs keep their frozen manifest and the data set's hash. A base or run
        that others refer to stays.

        Raises:
            NotFound: there is no record with this id.
            BadInput: other records refer to it, or a job is working on it.
        """
        with self._write() as session:
            row = self._row(session, kind, id)
            if kind in {Run, Sample} and not jobs.drop(session, id):
                raise BadInput(f"{NAMES[kind]} {id}", "is being worked on", "stop it first")
            if kind is Base:
                release_imports(session, id)
            check_unused(session, kind, id)
            session.delete(row)

    # --- data sets

    def add_dataset(self, dataset: Dataset, images: Sequence[Image]) -> Dataset:
        """Add a data set with its pictures, in order, in one transaction; fills hash, count and positions."""
        return self._insert(lambda session: insert_dataset(session, dataset, images))

    def replace_images(self, dataset_id: str, images: Sequence[Image]) -> Dataset:
        """Replace the pictures of a data set; ids that the pictures carry are kept."""

        def exchange(session: Session) -> Dataset:
            return exchange_images(session, self._row(session, Dataset, dataset_id), images)

        return self._insert(exchange)

    # --- runs and jobs

    def add_run(self, run: Run, images: Sequence[RunImage] = ()) -> Run:
        """Add a run together with the job that trains it and the pictures that it is given."""

        def insert(session: Session) -> Run:
            made = replace(run, id=run.id or new_id())
            session.add(RunRow.of(made))
            session.flush()
            session.add(JobRow.of(Job(id=new_id(), kind=made.job_kind, subject_id=made.id)))
            insert_run_images(session, images)
            return made

        return self._insert(insert)

    def move_run(
        self, id: str, to: RunState, *, expect: Collection[RunState], job: Job | None = None, **changes: Any
    ) -> Run:
        """Compare and set: move a run to another state if it is in one of the expected ones.

        Args:
            id: Run id.
            to: New state.
            expect: States it may be in now.
            job: Put into the queue in the same transaction (a resumed run and its job come together).
            changes: Further fields of the run.

        Raises:
            StudioError: the run is in another state.
        """
        check_fields(Run, changes)

        def move(session: Session) -> Run:
            row = self._row(session, Run, id)
            if row.state not in expect:
                wanted = ", ".join(sorted(expect))
                wrong = f"is {row.state}, not {wanted}: it cannot become {to}"
                raise StudioError(
                    f"run {row.name} ({id})", wrong, "look at it again: something else moved it"
                )
            row.assign({**changes, "state": to})
            if job is not None:
                session.add(JobRow.of(replace(job, id=job.id or new_id())))
            return as_stored(session, row)

        return self._insert(move)

    def pick(self, id: str, step: int, reason: str, by: str) -> Run:
        """Mark a checkpoint of a run as the one to use; a pick that counts for more stays, see `PICKERS`.

        Raises:
            NotFound: there is no run with this id.
        """
        with self._write() as session:
            row = self._row(session, Run, id)
            if PICKERS.index(by) >= PICKERS.index(row.pick_by or by):
                row.assign({"pick_step": step, "pick_reason": reason, "pick_by": by})
            return as_stored(session, row)

    def enqueue(self, job: Job) -> Job:
        """Put a job into the queue."""
        return self.add(job)

    def claim_job(self, kinds: Collection[JobKind], *, owner: str, lease: timedelta) -> Job | None:
        """Lease the oldest job that is queued or whose lease by another owner has run out; attempts += 1.

        Of any number of processes exactly one gets a job.
        """
        with self._read() as session:
            if not jobs.peek(session, kinds, owner):
                return None
        with self._write() as session:
            return jobs.claim(session, kinds, owner, lease)

    def renew_job(self, id: str, *, owner: str, lease: timedelta) -> bool:
        """Extend a lease; False when `owner` no longer has it. Late is not too late while nobody took it."""
        with self._write() as session:
            return jobs.renew(session, id, owner, lease)

    def release_jobs(self, *, keep: str) -> int:
        """End all leases of owners other than `keep`; for the one who has just taken the workspace lock."""
        with self._write() as session:
            return jobs.release(session, keep)

    def finish_job(self, id: str, state: JobState, *, error: str = "", result: JSON | None = None) -> Job:
        """Record how a job ended; with `state` QUEUED it goes back into the queue."""
        with self._write() as session:
            return jobs.finish(session, id, state, error, result or {})

    def cancel_job(self, id: str) -> Job:
        """Cancel a queued job at once, ask the owner of a leased one; ended jobs stay as they are."""
        with self._write() as session:
            return jobs.cancel(session, id)

    # --- safety

    def backup(self, to: Path) -> Path:
        """Copy the live catalog to `to`, checked.

        Raises:
            BadInput: the catalog is not an SQLite file.
            Damaged: the catalog is damaged; no backup is made of that.
        """
        if not self.is_file:
            raise BadInput(self._where, "is not an SQLite file", "use the database's own tool, pg_dump")
        return schema.backup(Path(self._where), to)

    def check(self) -> str:
        """ "ok", or what is wrong: every page, index and reference is read."""
        return schema.integrity(self._engine) if self.is_file else "ok"
