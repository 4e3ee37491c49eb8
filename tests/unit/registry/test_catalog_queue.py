"""The queue: each job once, whatever dies and whatever the clock does."""

from collections import Counter
from datetime import timedelta

import pytest

from registry.errors import NotFound, StudioError
from registry.records import Job, JobKind, JobState, Run, RunState, now
from tests.support import records
from tests.support.claimers import eight_claimers

LEASE = timedelta(seconds=30)
KINDS = (JobKind.TRAIN, JobKind.SAMPLE)


def queue(catalog, count, kind=JobKind.SAMPLE):
    return [catalog.enqueue(Job(kind=kind, subject_id=f"s{n}")) for n in range(count)]


def later(monkeypatch, **by):
    """From now on the queue's clock is ahead (or behind)."""
    monkeypatch.setattr("registry.jobs.now", lambda: now() + timedelta(**by))


def test_the_oldest_job_of_the_wanted_kinds_comes_first(catalog):
    sample, second = queue(catalog, 2)
    train = catalog.enqueue(Job(kind=JobKind.TRAIN, subject_id="r"))
    assert catalog.claim_job([JobKind.TRAIN], owner="w", lease=LEASE).id == train.id
    claimed = catalog.claim_job(KINDS, owner="w", lease=LEASE)
    assert (claimed.id, claimed.state, claimed.owner, claimed.attempts) == (
        sample.id,
        JobState.LEASED,
        "w",
        1,
    )
    assert timedelta(seconds=25) < claimed.lease_until - now() <= LEASE
    assert catalog.claim_job(KINDS, owner="w", lease=LEASE).id == second.id
    assert catalog.claim_job(KINDS, owner="w", lease=LEASE) is None
    assert catalog.claim_job([], owner="w", lease=LEASE) is None


def test_an_expired_lease_is_claimed_again_by_another(catalog, monkeypatch):
    queue(catalog, 1)
    first = catalog.claim_job(KINDS, owner="dead", lease=LEASE)
    assert catalog.claim_job(KINDS, owner="next", lease=LEASE) is None, "the lease still runs"
    later(monkeypatch, seconds=31)
    again = catalog.claim_job(KINDS, owner="next", lease=LEASE)
    assert (again.id, again.attempts, again.owner) == (first.id, 2, "next")
    assert not catalog.renew_job(first.id, owner="dead", lease=LEASE), "the first owner has lost it"


@pytest.mark.parametrize("days", [1, -1])
def test_a_clock_that_jumps_a_day_starts_nothing_twice(catalog, monkeypatch, days):
    queue(catalog, 1)
    job = catalog.claim_job(KINDS, owner="w", lease=LEASE)
    later(monkeypatch, days=days)
    assert catalog.claim_job(KINDS, owner="w", lease=LEASE) is None
    assert catalog.renew_job(job.id, owner="w", lease=LEASE), "its owner may always renew"
    assert catalog.get(Job, job.id).attempts == 1


def test_a_new_holder_ends_the_leases_of_the_dead(catalog, monkeypatch):
    theirs, mine = queue(catalog, 2)
    later(monkeypatch, days=1)  # written by a clock that was wrong
    catalog.claim_job(KINDS, owner="dead", lease=LEASE)
    monkeypatch.undo()
    catalog.claim_job(KINDS, owner="me", lease=LEASE)
    assert catalog.release_jobs(keep="me") == 1
    again = catalog.claim_job(KINDS, owner="me", lease=LEASE)
    assert (again.id, again.attempts) == (theirs.id, 2)
    assert catalog.get(Job, mine.id).attempts == 1


def test_finish_and_return_to_the_queue(catalog):
    (job,) = queue(catalog, 1)
    catalog.claim_job(KINDS, owner="w", lease=LEASE)
    back = catalog.finish_job(job.id, JobState.QUEUED)
    assert (back.state, back.lease_until) == (JobState.QUEUED, None)
    assert catalog.claim_job(KINDS, owner="w", lease=LEASE).attempts == 2
    done = catalog.finish_job(job.id, JobState.FAILED, error="out of memory", result={"code": 4})
    assert done == catalog.get(Job, job.id)
    assert (done.state, done.error, done.result) == (JobState.FAILED, "out of memory", {"code": 4})
    assert not catalog.renew_job(job.id, owner="w", lease=LEASE)
    with pytest.raises(NotFound, match="is not in the queue"):
        catalog.finish_job("nothing", JobState.DONE)


def test_cancel_is_at_once_for_a_queued_job_and_a_wish_for_a_leased_one(catalog):
    leased, waiting = queue(catalog, 2)
    catalog.claim_job(KINDS, owner="w", lease=LEASE)
    assert catalog.cancel_job(waiting.id).state is JobState.CANCELLED
    asked = catalog.cancel_job(leased.id)
    assert (asked.state, asked.cancel) == (JobState.LEASED, True)
    catalog.finish_job(leased.id, JobState.DONE)
    assert catalog.cancel_job(leased.id).state is JobState.DONE
    assert catalog.claim_job(KINDS, owner="x", lease=LEASE) is None


def test_a_run_and_its_job_come_together(catalog):
    base = catalog.add(records.base())
    run = catalog.add_run(records.run(base.id))
    (job,) = catalog.list(Job)
    assert (job.kind, job.subject_id, job.state) == (JobKind.TRAIN, run.id, JobState.QUEUED)
    with pytest.raises(StudioError, match="does not exist"):
        catalog.add_run(records.run("no base"))
    assert (catalog.count(Run), catalog.count(Job)) == (1, 1)


def test_a_run_moves_only_from_where_it_is_expected(catalog):
    run = catalog.add_run(records.run(catalog.add(records.base()).id, name="cats"))
    at = now()
    moved = catalog.move_run(run.id, RunState.STARTING, expect={RunState.QUEUED}, started_at=at, step=0)
    assert (moved.state, moved.started_at) == (RunState.STARTING, at)
    with pytest.raises(
        StudioError, match=r"^run cats \(\w+\): is starting, not paused, queued: it cannot become"
    ):
        catalog.move_run(run.id, RunState.RUNNING, expect={RunState.QUEUED, RunState.PAUSED})
    assert catalog.get(Run, run.id) == moved


def test_a_resumed_run_gets_its_job_in_the_same_transaction(catalog):
    run = catalog.add_run(records.run(catalog.add(records.base()).id, state=RunState.PAUSED))
    job = Job(kind=JobKind.TRAIN, subject_id=run.id)
    catalog.move_run(run.id, RunState.QUEUED, expect={RunState.PAUSED}, job=job)
    assert catalog.count(Job, subject_id=run.id) == 2
    with pytest.raises(StudioError):
        catalog.move_run(run.id, RunState.QUEUED, expect={RunState.PAUSED}, job=job)
    assert catalog.count(Job, subject_id=run.id) == 2


@pytest.mark.fault
def test_eight_processes_do_each_job_once(catalog, tmp_path):
    queue(catalog, 48)
    url = catalog._engine.url.render_as_string(hide_password=False)
    done = eight_claimers(url)
    counts = Counter(name for names in done for name in names)
    assert counts == Counter(f"s{n}" for n in range(48))
    assert catalog.count(Job, state=JobState.DONE) == 48
    assert {job.attempts for job in catalog.list(Job)} == {1}


def test_a_pick_that_counts_for_more_stays(catalog):
    run = catalog.add(records.run(catalog.add(records.base()).id))
    assert (run.pick_step, run.pick_reason, run.pick_by) == (0, "", "")
    assert catalog.pick(run.id, 100, "Lowest.", "probe").pick_step == 100
    assert catalog.pick(run.id, 200, "Likeliest.", "evidence").pick_reason == "Likeliest."
    mine = catalog.pick(run.id, 300, "", "you")
    assert catalog.pick(run.id, 100, "Lowest.", "probe") == mine
    assert catalog.pick(run.id, 200, "Likeliest.", "evidence") == mine
    assert catalog.pick(run.id, 400, "", "you") == catalog.get(Run, run.id) != mine
