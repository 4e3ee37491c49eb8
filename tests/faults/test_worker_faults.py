"""Worker and trainer killed at any moment, on the fake trainer: nothing lost, done twice, left behind."""

import os
import pty
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from registry.catalog import Catalog
from registry.records import Adapter, Checkpoint, Job, JobState, Run, RunState
from studio.runs import executors, launch
from studio.runs.background import ensure_worker
from studio.runs.process import ProcessIdentity
from studio.workspace import Workspace
from tests.support.fake_trainer import Script
from tests.support.supervision import (
    ROOT,
    WorkerProcess,
    fake_executor,
    make_run,
    make_worker,
    starts,
    state_of,
    trainers_alive,
    until,
)

pytestmark = pytest.mark.fault
ROUNDS = int(os.environ.get("STUDIO_FAULT_ROUNDS", "6"))
SHORT = ("train.max_steps=6", "checkpoints.every=3")


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return Workspace.open(tmp_path / "home")


def say(figure: str) -> None:
    """A figure for `pytest -s`."""
    sys.stdout.write(figure + "\n")


class Killed(BaseException):
    """Stands for SIGKILL inside this process: no handler of ours catches it."""


WRITES = ("move_run", "update", "add", "claim_job", "finish_job", "register_adapter", "renew_job", "delete")


@contextmanager
def killed_at(monkeypatch: pytest.MonkeyPatch, point: int, *, after: bool) -> Iterator[list[str]]:
    """The process dies right before, or right after, its `point`-th write; yields the writes so far."""
    done: list[str] = []

    def deadly(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def write(*args: Any, **kwargs: Any) -> Any:
            if len(done) == point and not after:
                raise Killed
            result = real(*args, **kwargs)
            done.append(name)
            if len(done) == point + 1 and after:
                raise Killed
            return result

        return write

    with monkeypatch.context() as patch:
        for name in WRITES:
            patch.setattr(Catalog, name, deadly(name, getattr(Catalog, name)))
        patch.setattr(executors, "write_json", deadly("process.json", executors.write_json))
        yield done


@pytest.mark.parametrize("after", [False, True])
def test_a_worker_killed_at_any_write_loses_nothing_and_starts_nothing_twice(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch, after: bool
):
    point = 0
    while True:
        run = make_run(ws, Script(), *SHORT, name=f"run {point}")
        with killed_at(monkeypatch, point, after=after) as done:
            try:
                make_worker(ws).run(once=True)
            except Killed:
                ended = False
            else:
                ended = True
        make_worker(ws).run(once=True)
        check_done(ws, run, f"{point} {done[-1:]}")
        if ended:
            break
        point += 1
    assert point >= 10  # claim, start, process, steps, checkpoints, adapter, end, job
    say(f"killed at {point} writes: runs lost 0, double starts 0")


def check_done(ws: Workspace, run: Run, where: str) -> None:
    """One start, one adapter, rows that match the files, a finished job."""
    run = ws.catalog.get(Run, run.id)
    assert (run.state, run.step) == (RunState.FINISHED, 6), (where, run.reason)
    assert len(starts(ws, run)) == 1, where
    assert [a.step for a in ws.catalog.list(Adapter, run_id=run.id)] == [6], where
    rows = ws.catalog.list(Checkpoint, run_id=run.id, order="step")
    assert [ws.resolve(row.path) for row in rows] == ws.run_dir(run.id).checkpoints(), where
    assert {job.state for job in ws.catalog.list(Job, subject_id=run.id)} == {JobState.DONE}, where


def test_workers_killed_at_random_moments(ws: Workspace):
    """SIGKILL to a real worker process in every state of a run; the next one adopts and finishes."""
    chance, adoption = random.Random(3), 0.0
    for _ in range(ROUNDS):
        run = make_run(ws, Script(step_seconds=0.05), *SHORT)
        first = WorkerProcess(ws)
        until(lambda run=run: state_of(ws, run) is not RunState.QUEUED)
        time.sleep(chance.uniform(0, 1.0))
        first.kill()
        alive = bool(trainers_alive(ws, run))
        began = time.monotonic()
        make_worker(ws).run(until=lambda run=run: state_of(ws, run) is RunState.FINISHED)
        adoption = max(adoption, time.monotonic() - began) if not alive else adoption
        check_done(ws, run, "random")
    say(f"SIGKILL x{ROUNDS}: runs lost 0, double starts 0, {adoption:.1f} s to settle a dead run")


def test_a_killed_trainer_is_interrupted_within_seconds_and_resumes(ws: Workspace):
    chance, slowest = random.Random(5), 0.0
    for _ in range(ROUNDS):
        run = make_run(ws, Script(step_seconds=0.02), "train.max_steps=40", "checkpoints.every=5")
        killed: list[float] = []

        def ended(run: Run = run, killed: list[float] = killed, at: int = chance.randrange(1, 25)) -> bool:
            now = ws.catalog.get(Run, run.id)
            if not killed and now.step >= at:
                os.kill(starts(ws, run)[0], signal.SIGKILL)
                killed.append(time.monotonic())
            return now.state is RunState.INTERRUPTED

        make_worker(ws).run(until=ended)
        slowest = max(slowest, time.monotonic() - killed[0])
        reason = ws.catalog.get(Run, run.id).reason
        assert "signal 9" in reason
        assert f"studio runs resume {run.id}" in reason
        launch.resume(ws, run)
        make_worker(ws).run(once=True)
        assert state_of(ws, run) is RunState.FINISHED
        steps = [line["step"] for line in ws.run_dir(run.id).read_metrics()]
        assert set(steps) == set(range(1, 41))
        assert len(steps) - 40 <= 5  # repeated: at most one interval
    assert slowest < 10
    say(f"SIGKILL of the trainer x{ROUNDS}: said after {slowest:.2f} s at most")


def test_worker_and_trainer_both_killed(ws: Workspace):
    run = make_run(ws, Script(step_seconds=0.05), "checkpoints.every=3")
    first = WorkerProcess(ws)
    until(lambda: ws.catalog.get(Run, run.id).step >= 4)
    first.kill()
    os.kill(starts(ws, run)[0], signal.SIGKILL)
    until(lambda: not trainers_alive(ws, run))
    make_worker(ws).run(once=True)
    interrupted = ws.catalog.get(Run, run.id)
    assert interrupted.state is RunState.INTERRUPTED
    assert "goes on from step" in interrupted.reason


def test_a_wish_made_while_no_worker_lived_is_obeyed(ws: Workspace):
    run = make_run(ws, Script(step_seconds=0.1), "train.max_steps=200")
    first = WorkerProcess(ws)
    until(lambda: ws.catalog.get(Run, run.id).step >= 2)
    first.kill()
    launch.stop(ws, run)
    make_worker(ws).run(once=True)
    assert state_of(ws, run) is RunState.STOPPED
    assert trainers_alive(ws, run) == []


def test_of_two_workers_one_is_refused_and_a_dead_ones_lock_is_free(ws: Workspace):
    first = WorkerProcess(ws)
    until(lambda: ws.holder() is not None)
    second = WorkerProcess(ws)
    code, said = second.end()
    assert code != 0
    assert "is held by worker" in said
    first.kill()
    third = WorkerProcess(ws, once=True)
    assert third.end()[0] == 0


@contextmanager
def in_terminal(ws: Workspace) -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """A worker in the foreground of a terminal of its own; yields it and the terminal's keyboard."""
    keyboard, screen = pty.openpty()

    def take_terminal() -> None:
        import fcntl
        import termios

        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    worker = subprocess.Popen(
        [sys.executable, "-m", "tests.support.worker_main", str(ws.home)],
        stdin=screen, stdout=screen, stderr=screen, cwd=ROOT, start_new_session=True,
        preexec_fn=take_terminal,
    )  # fmt: skip
    os.close(screen)
    try:
        yield worker, keyboard
    finally:
        worker.kill()
        worker.wait()
        os.close(keyboard)


CTRL_C = b"\x03"


def test_ctrl_c_once_saves_and_ends_everything(ws: Workspace):
    run = make_run(ws, Script(step_seconds=0.05), "train.max_steps=500")
    with in_terminal(ws) as (worker, keyboard):
        until(lambda: ws.catalog.get(Run, run.id).step >= 3)
        os.write(keyboard, CTRL_C)
        assert worker.wait(15) == 130
    ended = ws.catalog.get(Run, run.id)
    assert ended.state is RunState.INTERRUPTED
    assert (
        ended.reason
        == f"the worker was stopped; `studio runs resume {run.id}` goes on from step {ended.step}"
    )
    assert trainers_alive(ws, run) == []


def test_ctrl_c_twice_kills_what_does_not_listen(ws: Workspace):
    run = make_run(ws, Script(step_seconds=0.2, fault="deaf"), "train.max_steps=500")
    with in_terminal(ws) as (worker, keyboard):
        until(lambda: ws.catalog.get(Run, run.id).step >= 2)
        os.write(keyboard, CTRL_C)
        time.sleep(0.4)
        os.write(keyboard, CTRL_C)
        assert worker.wait(15) == 130
    assert state_of(ws, run) is RunState.INTERRUPTED
    assert trainers_alive(ws, run) == []


def test_sigterm_ends_the_worker_in_order(ws: Workspace):
    run = make_run(ws, Script(step_seconds=0.05), "train.max_steps=500")
    worker = WorkerProcess(ws)
    until(lambda: ws.catalog.get(Run, run.id).step >= 3)
    worker.signal(signal.SIGTERM)
    code, said = worker.end()
    assert code == 0, said
    assert state_of(ws, run) is RunState.INTERRUPTED
    assert trainers_alive(ws, run) == []


def test_a_clock_that_jumps_makes_no_trainer_look_hung(ws: Workspace):
    """The heartbeat's time may be a day off in either direction; that it changes is what counts."""
    run = make_run(ws, Script(step_seconds=0.1), "train.max_steps=30")
    heartbeat = ws.run_dir(run.id).file("heartbeat")
    jumps = [86400.0, -86400.0]

    def ended() -> bool:
        now = ws.catalog.get(Run, run.id)
        if jumps and now.step >= 5 * (3 - len(jumps)) and heartbeat.exists():
            moved = time.time() + jumps.pop()
            os.utime(heartbeat, (moved, moved))
        return now.state not in {RunState.QUEUED, RunState.STARTING, RunState.RUNNING}

    make_worker(ws).run(until=ended)
    assert jumps == []
    assert state_of(ws, run) is RunState.FINISHED


def test_a_reused_pid_is_not_our_trainer():
    me = ProcessIdentity.of(os.getpid())
    assert me is not None
    assert me.alive()
    assert ProcessIdentity.from_json(me.to_json()) == me
    other = ProcessIdentity(me.pid, me.started - 1, me.boot_id)
    assert not other.alive()
    assert other.members() == []
    assert not ProcessIdentity(me.pid, me.started, "another boot").alive()


def test_a_zombie_is_dead():
    child = subprocess.Popen([sys.executable, "-c", ""])
    identity = ProcessIdentity.of(child.pid)
    until(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE)
    assert identity is None or not identity.alive()
    child.wait()


def test_a_second_trainer_in_one_run_directory_is_refused(ws: Workspace):
    from registry.errors import StudioError

    run = make_run(ws, Script(step_seconds=0.1))
    rundir = ws.run_dir(run.id)
    executor = fake_executor(ws)
    identity = executor.start(rundir)
    try:
        with pytest.raises(StudioError, match="already has a living trainer"):
            fake_executor(ws).start(rundir)
        until(lambda: len(starts(ws, run)) == 1)
        rundir.file("process.json").unlink()
        assert fake_executor(ws).find(rundir) == identity
    finally:
        identity.kill()
    until(lambda: executor.exit_code(identity) == -signal.SIGKILL)
    assert fake_executor(ws).find(rundir) is None


def test_a_trainer_that_has_only_just_been_started_is_found(ws: Workspace, monkeypatch: pytest.MonkeyPatch):
    """Its worker died at once: no process.json, and for a moment no command line either."""
    run = make_run(ws, Script(step_seconds=0.1))
    rundir = ws.run_dir(run.id)
    identity = fake_executor(ws).spawn(rundir)
    real, unseen = psutil.process_iter, [1, 2, 3]

    def processes() -> Iterator[psutil.Process]:
        hidden = bool(unseen) and bool(unseen.pop())
        yield from (process for process in real() if not (hidden and process.pid == identity.pid))

    monkeypatch.setattr(psutil, "process_iter", processes)
    try:
        assert fake_executor(ws).find(rundir) == identity
        assert unseen == []
    finally:
        monkeypatch.undo()
        identity.kill()


def test_a_full_disk_is_waited_out(ws: Workspace, monkeypatch: pytest.MonkeyPatch):
    """Registering fails for want of space; the run is finished once there is some."""
    from registry.errors import StudioError
    from studio.runs import supervise

    real, refusals = supervise.register_run_adapter, [1, 2, 3]

    def full(*args: Any) -> Adapter:
        if refusals:
            refusals.pop()
            raise StudioError("adapters", "cannot be written (no space left on device)", "free some space")
        return real(*args)

    monkeypatch.setattr(supervise, "register_run_adapter", full)
    run = make_run(ws)
    said: list[str] = []
    make_worker(ws, say=said.append).run(once=True)
    assert state_of(ws, run) is RunState.FINISHED
    assert sum("no space left" in line for line in said) == 1


def test_the_background_worker_serves_its_parent_and_then_ends(ws: Workspace):
    pid = ensure_worker(ws)
    assert ensure_worker(ws) == pid
    worker = psutil.Process(pid)
    assert os.getsid(pid) == pid
    worker.terminate()
    until(lambda: ws.holder() is None)
    script = "import sys; from pathlib import Path; from studio.workspace import Workspace; " \
        "from studio.runs.background import ensure_worker; " \
        "sys.stdout.write(str(ensure_worker(Workspace.open(Path(sys.argv[1])))))"  # fmt: skip
    short = subprocess.run(
        [sys.executable, "-c", script, str(ws.home)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert psutil.pid_exists(int(short.stdout)) or ws.holder() is None
    until(lambda: ws.holder() is None)


def test_every_rank_is_asked_once_and_none_is_left(ws: Workspace):
    """Several processes: the launcher would pass a signal on, and the second one means "at once"."""
    run = make_run(ws, Script(step_seconds=0.05), "train.max_steps=2000", "checkpoints.every=2000")
    rundir, executor = ws.run_dir(run.id), fake_executor(ws)
    identity = executor.start(rundir, 2)
    try:
        until(lambda: len(starts(ws, run)) == 2 and rundir.file("metrics.jsonl").exists(), 60)
        assert fake_executor(ws).find(rundir) == identity
        assert len(identity.members()) == 3
        identity.ask_to_stop()
        until(lambda: executor.exit_code(identity) is not None, 60)
    finally:
        identity.kill()
    assert executor.exit_code(identity) == 0  # a second signal would have been exit code 1
    assert trainers_alive(ws, run) == []
    status = rundir.read_status()
    assert status is not None
    assert status.state == "stopped"
