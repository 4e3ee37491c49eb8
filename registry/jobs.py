"""The queue, as functions on an open write transaction.

A lease says who works on a job and until when. The owner may renew it at any time, also late, and never
claims its own job a second time: a clock that jumps forward by a day starts nothing twice.
"""

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, or_, select
from sqlalchemy.orm import Session

from registry.errors import NotFound
from registry.records import Job, JobKind, JobState, now
from registry.tables import JobRow


def claimable(kinds: Collection[JobKind], owner: str, time: datetime) -> ColumnElement[bool]:
    """Queued, or leased by someone else whose lease has run out."""
    expired = and_(JobRow.state == JobState.LEASED, JobRow.lease_until < time, JobRow.owner != owner)
    return and_(JobRow.kind.in_(kinds), or_(JobRow.state == JobState.QUEUED, expired))


def peek(session: Session, kinds: Collection[JobKind], owner: str) -> bool:
    """Whether there is something to claim; costs no write lock."""
    return session.scalar(select(JobRow.id).where(claimable(kinds, owner, now())).limit(1)) is not None


def claim(session: Session, kinds: Collection[JobKind], owner: str, lease: timedelta) -> Job | None:
    """Lease the oldest claimable job to `owner`; one in the background only when no other waits."""
    oldest = (
        select(JobRow)
        .where(claimable(kinds, owner, now()))
        .order_by(JobRow.background, JobRow.created_at, JobRow.id)
        .limit(1)
        .with_for_update(skip_locked=True)  # PostgreSQL; SQLite has taken its one lock already
    )
    row = session.scalars(oldest).first()
    if row is None:
        return None
    row.assign(
        {
            "state": JobState.LEASED,
            "owner": owner,
            "lease_until": now() + lease,
            "attempts": row.attempts + 1,
        }
    )
    return row.to_record()


def renew(session: Session, job_id: str, owner: str, lease: timedelta) -> bool:
    """Extend the lease if `owner` still has it, expired or not."""
    row = find(session, job_id)
    if row.state is not JobState.LEASED or row.owner != owner:
        return False
    row.lease_until = now() + lease
    return True


def release(session: Session, keep: str) -> int:
    """End the leases of all owners other than `keep`; their jobs can be claimed at once."""
    others = and_(JobRow.state == JobState.LEASED, JobRow.owner != keep)
    rows = session.scalars(select(JobRow).where(others)).all()
    for row in rows:
        row.lease_until = now() - timedelta(seconds=1)
    return len(rows)


def finish(session: Session, job_id: str, state: JobState, error: str, result: dict[str, Any]) -> Job:
    """Record the end of a job, or put it back in the queue (`state` QUEUED)."""
    row = find(session, job_id)
    row.assign({"state": state, "error": error, "result": result, "lease_until": None})
    return row.to_record()


def cancel(session: Session, job_id: str) -> Job:
    """Cancel a queued job at once; ask the owner of a leased one. A job that has ended stays as it is."""
    row = find(session, job_id)
    if row.state is JobState.QUEUED:
        row.state = JobState.CANCELLED
    if row.state in {JobState.LEASED, JobState.CANCELLED}:
        row.cancel = True
    return row.to_record()


def drop(session: Session, subject_id: str) -> bool:
    """Remove the jobs of a run or sample that is being deleted; False when one of them is being worked on."""
    rows = session.scalars(select(JobRow).where(JobRow.subject_id == subject_id)).all()
    if any(row.state is JobState.LEASED for row in rows):
        return False
    for row in rows:
        session.delete(row)
    return True


def find(session: Session, job_id: str) -> JobRow:
    """The row of a job.

    Raises:
        NotFound: there is no such job.
    """
    row = session.get(JobRow, job_id, with_for_update=True)
    if row is None:
        raise NotFound(f"job {job_id}", "is not in the queue", "list jobs to see what is")
    return row
