"""Comparisons, asked of the catalog: their cells with what came of them, and the cells' samples.

`Catalog.grids` hands a `Grids` out; like the catalog's own, each method is one short transaction.
"""

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, TypeVar

from sqlalchemy import Text, cast, delete, func, select
from sqlalchemy.orm import Session

from registry import jobs
from registry.grid_tables import ComparisonCellRow, ComparisonRow
from registry.ids import new_id
from registry.records import Comparison, ComparisonCell, Job, JobState, Sample
from registry.tables import JobRow, SampleRow

T = TypeVar("T")
AT_ONCE = 500  # keys in one statement
LIVE = (JobState.QUEUED, JobState.LEASED)


class Insert(Protocol):
    """Runs its argument in a write transaction, again when an id was taken."""

    def __call__(self, work: Callable[[Session], T], /) -> T: ...  # noqa: D102


@dataclass(frozen=True)
class CellState:
    """A cell and how far it is."""

    place: str
    key: str
    sample_id: str
    files: tuple[str, ...]  # of the sample; () = not drawn
    job_id: str = ""
    state: str = ""  # of its newest job; "" = none
    error: str = ""
    seconds: float = 0.0  # that drawing took, with loading


class Grids:
    """Comparisons with their cells.

    Args:
        read: Opens a session to read in.
        insert: Runs a function in a write transaction.
    """

    def __init__(self, read: Callable[[], AbstractContextManager[Session]], insert: Insert) -> None:
        self._read, self._insert = read, insert

    def put(
        self,
        comparison: Comparison,
        cells: Sequence[ComparisonCell],
        samples: Sequence[Sample],
        queue: Sequence[Job],
    ) -> Comparison:
        """Write a comparison with all of its cells, and queue what is to be drawn; all or none.

        Args:
            comparison: New, or with an id: then spec and cells take the place of those that are there.
            cells: All of them; `comparison_id` is filled in.
            samples: Those that are new.
            queue: In the order of their turns.

        Raises:
            BadInput: the name is taken.
        """

        def write(session: Session) -> Comparison:
            made = replace(comparison, id=comparison.id or new_id())
            row = session.get(ComparisonRow, made.id)
            if row is None:
                session.add(ComparisonRow.of(made))
            else:
                row.assign({"name": made.name, "spec": made.spec})
            session.execute(delete(ComparisonCellRow).where(ComparisonCellRow.comparison_id == made.id))
            session.add_all([SampleRow.of(sample) for sample in samples])
            session.flush()
            session.add_all([JobRow.of(replace(job, id=job.id or new_id())) for job in queue])
            session.add_all(
                [ComparisonCellRow(**asdict(replace(cell, comparison_id=made.id))) for cell in cells]
            )
            return made

        return self._insert(write)

    def cells(self, comparison_id: str) -> list[CellState]:
        """The cells of a comparison and what came of each, in no order."""
        mine = ComparisonCellRow.comparison_id == comparison_id
        mine_and_files = select(ComparisonCellRow, SampleRow.files).where(mine)
        joined = mine_and_files.outerjoin(SampleRow, SampleRow.id == ComparisonCellRow.sample_id)
        samples = select(ComparisonCellRow.sample_id).where(mine)
        with self._read() as session:
            found = session.execute(joined).all()
            newest = _jobs_of(session, JobRow.subject_id.in_(samples))
        return [_state(cell, files, newest.get(cell.sample_id)) for cell, files in found]

    def known(self, keys: Collection[str]) -> dict[str, str]:
        """Key -> id of the newest sample that was drawn from it, or is in the queue to be drawn."""
        wanted, found = sorted(set(keys) - {""}), dict[str, str]()
        with self._read() as session:
            for start in range(0, len(wanted), AT_ONCE):
                some = SampleRow.key.in_(wanted[start : start + AT_ONCE])
                rows = session.execute(
                    select(SampleRow.key, SampleRow.id, SampleRow.files).where(some).order_by(SampleRow.id)
                ).all()
                undrawn = [id for _, id, files in rows if not files]
                newest = _jobs_of(session, JobRow.subject_id.in_(undrawn))
                for key, id, files in rows:
                    job = newest.get(id)
                    if files or (job is not None and job.state in LIVE and not job.cancel):
                        found[key] = id
        return found

    def shared(self, sample_ids: Collection[str], without: str) -> set[str]:
        """Those of the samples that are cells of other comparisons than `without`."""
        wanted, found = sorted(sample_ids), set[str]()
        with self._read() as session:
            for start in range(0, len(wanted), AT_ONCE):
                some = ComparisonCellRow.sample_id.in_(wanted[start : start + AT_ONCE])
                other = ComparisonCellRow.comparison_id != without
                found |= set(session.scalars(select(ComparisonCellRow.sample_id).where(some, other)))
        return found

    def cancel(self, job_ids: Collection[str]) -> int:
        """Call jobs off, as `Catalog.cancel_job` does; returns how many had not ended."""

        def call_off(session: Session) -> int:
            live = 0
            for id in sorted(job_ids):
                live += jobs.find(session, id).state in LIVE
                jobs.cancel(session, id)
            return live

        return self._insert(call_off)

    def undrawn(self, comparison_id: str) -> int:
        """How many cells of a comparison have no picture."""
        mine = ComparisonCellRow.comparison_id == comparison_id
        query = select(func.count()).select_from(ComparisonCellRow).where(mine)
        joined = query.outerjoin(SampleRow, SampleRow.id == ComparisonCellRow.sample_id)
        bare = joined.where((SampleRow.id.is_(None)) | (cast(SampleRow.files, Text) == "[]"))
        with self._read() as session:
            return session.scalar(bare) or 0

    def counts(self) -> dict[str, tuple[int, int]]:
        """Comparison id -> (cells, drawn ones)."""
        mine = ComparisonCellRow.comparison_id
        drawn = func.count(SampleRow.id).filter(cast(SampleRow.files, Text) != "[]")
        query = select(mine, func.count(), drawn).outerjoin(
            SampleRow, SampleRow.id == ComparisonCellRow.sample_id
        )
        with self._read() as session:
            return {id: (cells, done) for id, cells, done in session.execute(query.group_by(mine))}


def _jobs_of(session: Session, fits: Any) -> dict[str, JobRow]:
    """The newest job of each subject."""
    rows = session.scalars(select(JobRow).where(fits).order_by(JobRow.created_at, JobRow.id))
    return {row.subject_id: row for row in rows}


def _state(cell: ComparisonCellRow, files: tuple[str, ...] | None, job: JobRow | None) -> CellState:
    state = CellState(cell.place, cell.key, cell.sample_id, files or ())
    if job is None:
        return state
    seconds = float(job.result.get("seconds", 0.0))
    return replace(state, job_id=job.id, state=str(job.state), error=job.error, seconds=seconds)
