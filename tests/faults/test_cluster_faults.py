"""Runs on a cluster that misbehaves: a Jobs service of our own, Ray's real client, the node's real program.

The trainer is the fake one. What a real head does is in tests/e2e/test_ray_cluster.py.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from registry.errors import BadInput
from registry.records import Adapter, Job, JobState, Run, RunState
from studio.runs import clusters, executors, launch
from studio.runs.attempts import Attempt
from studio.runs.ray_executor import RayExecutor
from studio.runs.supervise import Limits
from studio.runs.worker import Worker
from studio.settings import Settings
from studio.workspace import Workspace
from tests.support.fake_trainer import Script
from tests.support.ray_service import Service
from tests.support.supervision import ENDED, fake_executor, make_run, starts, trainers_alive, until

pytestmark = pytest.mark.fault
LIMITS = Limits(tick=0.1, stop_grace=20.0, silence=10.0, first_heartbeat=30.0)
SHORT = ("train.max_steps=6", "checkpoints.every=3")
LONG = ("train.max_steps=400", "checkpoints.every=3")
SLOW = Script(step_seconds=0.05)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    logs = tmp_path / "cluster"
    logs.mkdir()
    service = Service(logs)
    service.up()
    yield service
    service.close()


@pytest.fixture
def ws(tmp_path: Path, service: Service) -> Workspace:
    ws = Workspace.open(tmp_path / "home")
    Settings.save(ws.home, {"ray_address": service.address, "ray_python": sys.executable})
    return ws


def work(ws: Workspace, ended: Callable[[], bool], say: list[str] | None = None) -> None:
    """A worker until `ended`; then it is gone, and what it had begun is left as it is."""
    executor = RayExecutor(ws.home, module="tests.support.fake_trainer", poll=0.1, quiet=1.0)
    say_it = None if say is None else say.append
    Worker(ws, limits=LIMITS, executor=fake_executor(ws), cluster=executor, say=say_it).run(until=ended)


def state(ws: Workspace, run: Run) -> RunState:
    return ws.catalog.get(Run, run.id).state


def reason(ws: Workspace, run: Run) -> str:
    return ws.catalog.get(Run, run.id).reason


def over(ws: Workspace, run: Run) -> Callable[[], bool]:
    return lambda: state(ws, run) in ENDED


def step(ws: Workspace, run: Run) -> int:
    return ws.catalog.get(Run, run.id).step


def check_finished_once(ws: Workspace, run: Run, service: Service, attempts: int = 1) -> None:
    """One job for each attempt, one start of a trainer for each, one adapter, a finished job."""
    ended = ws.catalog.get(Run, run.id)
    assert (ended.state, ended.step, ended.reason) == (RunState.FINISHED, ended.steps, "")
    assert service.submitted == [f"lora-{run.id}-{number + 1}" for number in range(attempts)]
    assert len(starts(ws, run)) == attempts
    assert [adapter.step for adapter in ws.catalog.list(Adapter, run_id=run.id)] == [ended.steps]
    assert ws.catalog.list(Job, subject_id=run.id)[0].state is JobState.DONE
    assert trainers_alive(ws, run) == []


def test_a_wrong_token_is_said_and_waited_for_and_no_secret_goes_anywhere(ws: Workspace, service: Service):
    service.token = "cluster-password"
    Settings.save(ws.home, {"ray_token": "wrong"})
    run, said = make_run(ws, SLOW, *SHORT, place="ray"), []
    work(ws, lambda: "does not take our token" in reason(ws, run), said)
    assert state(ws, run) is RunState.STARTING
    assert sum("does not take our token" in line for line in said) == 1
    assert service.submitted == []
    Settings.save(ws.home, {"ray_token": service.token})
    work(ws, over(ws, run), said)
    check_finished_once(ws, run, service)
    rows = json.dumps([str(ws.catalog.list(kind)) for kind in (Run, Job)])
    files = [
        path for path in ws.run_dir(run.id).path.rglob("*") if path.suffix not in {".safetensors", ".lock"}
    ]
    texts = [rows, *said, *service.asked, *(path.read_text() for path in files if path.is_file())]
    assert len(texts) > 10
    for secret in (ws.key.hex(), service.token):
        assert not any(secret in text for text in texts)
    assert (ws.home / "studio.toml").stat().st_mode & 0o077 == 0


def test_a_cluster_that_is_away_fails_no_run(ws: Workspace, service: Service):
    """Neither one that waits to be submitted nor one that trains; both are said, and both go on."""
    service.down()
    run, said = make_run(ws, SLOW, "train.max_steps=40", "checkpoints.every=20", place="ray"), []
    work(ws, lambda: "cannot be reached" in reason(ws, run), said)
    service.up()
    work(ws, lambda: step(ws, run) >= 2, said)
    service.down()
    work(ws, lambda: "goes on by itself" in reason(ws, run) and step(ws, run) >= 5, said)
    service.up()
    work(ws, over(ws, run), said)
    check_finished_once(ws, run, service)
    assert any("cannot be reached (ConnectionError); the run waits" in line for line in said)


def test_a_stop_while_the_cluster_is_away_waits_for_nobody(ws: Workspace, service: Service):
    """Also when the cluster has taken the job and its answer was lost."""
    run = make_run(ws, SLOW, *SHORT, place="ray")
    service.down()
    work(ws, lambda: "cannot be reached" in reason(ws, run))
    launch.stop(ws, run)
    work(ws, over(ws, run))
    assert (state(ws, run), reason(ws, run)) == (RunState.STOPPED, "")
    service.up()
    folder, late = ws.run_dir(run.id), Attempt(ws.run_dir(run.id), 1)
    words = f"{sys.executable} -m studio.runs.node {folder.path} 1 1 tests.support.fake_trainer"
    clusters.Jobs(clusters.Cluster.of(ws.home)).submit(late.job, words, run.id, 1, {"ANY": "1"})
    process = service.jobs[late.job].process
    assert process is not None
    assert process.wait(20) == 0
    assert starts(ws, run) == []


def test_a_worker_that_dies_finds_the_job_again(
    ws: Workspace, service: Service, monkeypatch: pytest.MonkeyPatch
):
    """Before it has submitted, before it has heard that it has, while it trains, and after its end."""
    run = make_run(ws, SLOW, "train.max_steps=30", "checkpoints.every=10", place="ray")

    def dies(*_: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(clusters.Jobs, "submit", dies)
        work(ws, lambda: "killed" in reason(ws, run))
    assert service.submitted == []
    with monkeypatch.context() as patch:
        patch.setattr(Attempt, "mark_submitted", dies)
        work(ws, lambda: bool(service.submitted))
    assert not Attempt(ws.run_dir(run.id), 1).submitted
    work(ws, lambda: step(ws, run) >= 3)
    until(lambda: not trainers_alive(ws, run))
    until(lambda: Attempt(ws.run_dir(run.id), 1).ended() is not None)
    assert state(ws, run) is RunState.RUNNING  # nobody was there to see its end
    work(ws, over(ws, run))
    check_finished_once(ws, run, service)


def test_a_worker_that_is_stopped_leaves_the_job_alone(ws: Workspace, service: Service):
    run, said = make_run(ws, SLOW, "train.max_steps=30", "checkpoints.every=10", place="ray"), []

    def at_step_3() -> bool:
        if step(ws, run) >= 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return False

    work(ws, at_step_3, said)
    assert state(ws, run) is RunState.RUNNING
    assert any("goes on by itself" in line for line in said)
    work(ws, over(ws, run), said)
    check_finished_once(ws, run, service)


def test_a_job_that_the_cluster_forgot_goes_on_and_one_that_died_is_resumed(ws: Workspace, service: Service):
    run = make_run(ws, SLOW, *LONG, place="ray")
    work(ws, lambda: step(ws, run) >= 4)
    (job,) = service.jobs.values()
    service.jobs.clear()
    forgotten = step(ws, run)
    work(ws, lambda: step(ws, run) > forgotten + 30)  # longer than the silence that would end it
    assert state(ws, run) is RunState.RUNNING
    service.kill(job)  # the program on the node alone; the trainer has a session of its own
    work(ws, over(ws, run))
    assert trainers_alive(ws, run) == []  # its guard has seen to that
    ended = ws.catalog.get(Run, run.id)
    assert ended.state is RunState.INTERRUPTED
    assert ended.reason.startswith("the trainer is gone; `studio runs resume")
    assert "the cluster does not know the job any more" in ws.run_dir(run.id).file("log.txt").read_text()
    launch.resume(ws, ended)
    work(ws, lambda: state(ws, run) is RunState.RUNNING and step(ws, run) > ended.step + 2)
    launch.pause(ws, run)
    work(ws, over(ws, run))
    assert state(ws, run) is RunState.PAUSED
    lines = [line["step"] for line in ws.run_dir(run.id).read_metrics()]
    assert len(lines) - len(set(lines)) <= 3  # repeated: at most what came after the last checkpoint
    assert service.submitted == [f"lora-{run.id}-1", f"lora-{run.id}-2"]


def test_a_stop_while_it_waits_cancels_the_job(ws: Workspace, service: Service):
    service.room = False
    run = make_run(ws, SLOW, *SHORT, place="ray")
    work(ws, lambda: "waits for room on the cluster" in reason(ws, run))
    launch.stop(ws, run)
    work(ws, over(ws, run))
    assert state(ws, run) is RunState.STOPPED
    (job,) = service.jobs.values()
    assert job.stopped
    job.stopped = False  # as if the cluster had not heard it
    service.make_room()  # too late: what starts now finds the wish
    assert job.process is not None
    assert job.process.wait(20) == 0
    assert starts(ws, run) == []
    launch.resume(ws, run)
    work(ws, over(ws, run))
    assert len(starts(ws, run)) == 1
    assert state(ws, run) is RunState.FINISHED
    assert ws.catalog.get(Run, run.id).place == "ray"


def test_runs_wait_neither_for_each_other_nor_for_this_machine(
    ws: Workspace, service: Service, monkeypatch: pytest.MonkeyPatch
):
    """As many as may be are handed over at a time, beside one that trains here."""
    monkeypatch.setattr(executors, "subprocess", subprocess)  # not forked: the server for that loads for 25 s
    service.room = False
    Settings.save(ws.home, {"ray_runs": 2})
    away = [make_run(ws, SLOW, *SHORT, name=f"away {number}", place="ray") for number in range(3)]
    here = make_run(ws, SLOW, *SHORT)
    work(ws, lambda: state(ws, here) in ENDED and len(service.submitted) >= 2)
    assert state(ws, here) is RunState.FINISHED
    assert service.submitted == [f"lora-{run.id}-1" for run in away[:2]]
    assert [state(ws, run) for run in away] == [RunState.STARTING, RunState.STARTING, RunState.QUEUED]


def test_a_job_that_ray_gave_up_gets_in_line_again(ws: Workspace, service: Service):
    service.room = False
    run = make_run(ws, SLOW, *SHORT, place="ray")
    work(ws, lambda: bool(service.jobs))
    service.give_up()
    work(ws, lambda: len(service.jobs) == 2)
    service.make_room()
    work(ws, over(ws, run))
    assert service.submitted == [f"lora-{run.id}-1", f"lora-{run.id}-2"]
    assert len(starts(ws, run)) == 1
    assert state(ws, run) is RunState.FINISHED


def test_what_a_node_does_not_see_is_one_line(ws: Workspace, service: Service, tmp_path: Path):
    Settings.save(ws.home, {"ray_storage": "/nowhere"})
    run = make_run(ws, None, *SHORT, place="ray")
    work(ws, over(ws, run))
    ended = ws.catalog.get(Run, run.id)
    assert ended.state is RunState.FAILED
    assert f"/nowhere/runs/{run.id}: is not there on node" in ended.reason
    assert "let all nodes mount the workspace" in ended.reason
    Settings.save(ws.home, {"ray_storage": ""})
    rundir = ws.run_dir(run.id)
    env = rundir.read_env()
    launch.resume(ws, ended)
    rundir.write_env(type(env)(**(vars(env) | {"base_location": str(tmp_path / "base")})))
    work(ws, over(ws, run))
    ended = ws.catalog.get(Run, run.id)
    assert ended.state is RunState.FAILED
    assert ended.reason.startswith(f"{tmp_path / 'base'}: is not there on node")
    assert starts(ws, run) == []


def test_a_job_runs_once(ws: Workspace, service: Service):
    """Also when a cluster starts its command a second time."""
    run = make_run(ws, SLOW, *SHORT, place="ray")
    work(ws, over(ws, run))
    (job,) = service.jobs.values()
    job.status = "PENDING"
    service.make_room()
    assert job.process is not None
    assert job.process.wait(20) == 1
    assert job.output is not None
    assert "was started before" in job.output.read_text()
    check_finished_once(ws, run, service)


def test_a_run_goes_nowhere_without_a_cluster_or_without_ray(ws: Workspace, monkeypatch: pytest.MonkeyPatch):
    make_run(ws, None, *SHORT)
    with monkeypatch.context() as patch:
        patch.setattr(clusters, "find_spec", lambda _: None)
        with pytest.raises(BadInput, match=r"Ray: is not installed here\. install it: pip install 'lora-st"):
            make_run(ws, None, *SHORT, place="ray")
    Settings.save(ws.home, {"ray_address": ""})
    with pytest.raises(BadInput, match="Ray cluster: is not set up"):
        make_run(ws, None, *SHORT, place="ray")
    with pytest.raises(BadInput, match="--on moon: is no place to train"):
        make_run(ws, None, *SHORT, place="moon")
    assert ws.catalog.count(Run) == 1


def test_nobody_but_the_worker_has_the_token(ws: Workspace, monkeypatch: pytest.MonkeyPatch):
    from studio.settings import child_environment

    monkeypatch.setenv("STUDIO_RAY_TOKEN", "cluster-password")
    assert "STUDIO_RAY_TOKEN" not in child_environment()
    assert child_environment("STUDIO_RAY_TOKEN")["STUDIO_RAY_TOKEN"] == "cluster-password"
    assert "cluster-password" not in repr(clusters.Cluster.of(ws.home))
    assert "cluster-password" not in repr(Settings.load(ws.home))
