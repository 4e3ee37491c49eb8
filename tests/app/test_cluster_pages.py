"""A real Ray cluster, used from the pages: set up, train there, stop, go on, to the same bits as here."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from streamlit.testing.v1 import AppTest

from registry.hashing import hash_adapter
from registry.records import Run, RunState
from studio.bases import add_base
from studio.runs import launch
from studio.runs.clusters import Cluster, Jobs
from studio.runs.ray_executor import RayExecutor
from studio.runs.supervise import Limits
from studio.runs.worker import Worker
from studio.settings import Settings
from studio.workspace import Workspace
from tests.app.conftest import Open
from tests.app.test_pages import button, texts
from tests.support.fake_trainer import Script
from tests.support.ray_head import Head, ray_head
from tests.support.supervision import ENDED, make_dataset, make_run, trainers_alive, until
from trainers.recipe import preset_name, thaw
from trainers.rundir import LOG

pytestmark = pytest.mark.slow
LIMITS = Limits()
OFTEN = 0.2  # seconds between looks, which take their share of the processor, too
STEPS = 120
QUICK = {
    "train.max_steps": STEPS, "train.resolution": 32, "train.batch_size": 1, "train.num_threads": 1,
    "checkpoints.every": 50, "preview.every": 0, "adapter.rank": 4, "data.bucket_step": 8,
    "log.tensorboard": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head() as head:
        yield head


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    ws = Workspace.open(tmp_path / "home")
    Settings.save(ws.home, {"ray_python": sys.executable})
    return ws


@contextmanager
def working(ws: Workspace, module: str = "trainers.run") -> Iterator[None]:
    """A worker in a thread, as the app keeps one in a process."""
    over = threading.Event()
    executor = RayExecutor(ws.home, module=module, poll=0.2, quiet=3.0)
    worker = Worker(Workspace.open(ws.home), limits=LIMITS, cluster=executor)
    thread = threading.Thread(target=worker.run, kwargs={"until": over.is_set}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(60)


def run_of(ws: Workspace, run: Run) -> Run:
    return ws.catalog.get(Run, run.id)


def ended(ws: Workspace, run: Run, state: RunState) -> Callable[[], bool]:
    def look() -> bool:
        now = run_of(ws, run)
        assert now.state not in ENDED - {state}, (now.reason, ws.run_dir(run.id).file(LOG).read_text())
        return now.state is state

    return look


def field(at: AppTest, label: str) -> object:
    return next(widget for widget in at.text_input if widget.label == label)


def set_up(ws: Workspace, open_page: Open, head: Head) -> None:
    """The Settings page: a wrong address, the right one, and the question whether it answers."""
    at = open_page(ws, "settings")
    assert "Runs train on this machine." in texts(at)
    at.session_state["cluster"] = True
    at.run()
    field(at, "Address").input("head:8265")
    button(at, "Save").click().run()
    assert "must be the address of a dashboard" in texts(at)
    field(at, "Address").input(head.address)
    field(at, "Token").input(head.token)
    button(at, "Save").click().run()
    button(at, "Ask the cluster").click().run()
    until(lambda: "answers." in texts(at.run()), 30, every=0.5)
    assert head.token not in texts(at)
    assert field(at, "Token").value == ""


@pytest.mark.timeout(900)
def test_a_run_of_the_pages_trains_on_the_cluster_to_the_same_bits(
    ws: Workspace, open_page: Open, head: Head, tiny_sd15: Path
):
    ours = sys.modules["__main__"]
    set_up(ws, open_page, head)
    base, dataset = add_base(ws, "tiny", str(tiny_sd15)), make_dataset(ws)
    at = open_page(ws, "train", base="tiny", dataset=dataset.id, goal="style")
    at.session_state[f"changed-{preset_name(base.family, 'style', base.name)}"] = dict(QUICK)
    at.session_state["train-place"] = "ray"
    at.run()
    button(at, "Start training").click().run()
    (run,) = ws.catalog.list(Run)
    assert run.place == "ray"
    with working(ws):
        until(lambda: run_of(ws, run).step >= 3, 240, OFTEN)
        at = open_page(ws, "runs", run=run.id)
        assert not at.exception
        assert "on the cluster" in texts(at)
        button(at, "Stop").click().run()
        until(ended(ws, run, RunState.STOPPED), 60, OFTEN)
        stopped = run_of(ws, run)
        assert 3 <= stopped.step < STEPS
        button(open_page(ws, "runs", run=run.id), "Go on").click().run()
        sys.modules["__main__"] = ours  # not the page: a trainer that is forked would run it
        here = launch.launch(ws, thaw(run.recipe), base, dataset, "here")
        until(ended(ws, here, RunState.FINISHED), 240, OFTEN)
        until(ended(ws, run, RunState.FINISHED), 240, OFTEN)
    there, beside = (ws.run_dir(one.id) for one in (run, here))
    tensors = {hash_adapter(one.adapter).tensor_sha256 for one in (there, beside)}
    assert len(tensors) == 1  # the files differ in what they say of themselves: run and name
    assert [line["loss"] for line in there.read_metrics()] == [line["loss"] for line in beside.read_metrics()]
    log = there.file(LOG).read_text()
    assert log.count("--- attempt of ") == 2
    jobs = Jobs(Cluster.of(ws.home))
    shown = str(jobs._connect().list_jobs())  # pyright: ignore[reportPrivateUsage]  all that Ray knows of them
    assert f"lora-{run.id}-2" in shown
    assert not any(secret in shown for secret in (ws.key.hex(), head.token))


def test_a_job_that_dies_is_interrupted_and_leaves_no_trainer(ws: Workspace, head: Head):
    """Ray's own process beside the job is killed: Ray kills the node's program, its guard the trainer."""
    Settings.save(ws.home, {"ray_address": head.address, "ray_token": head.token})
    run = make_run(ws, Script(step_seconds=0.1), "train.max_steps=1000", place="ray")
    with working(ws, "tests.support.fake_trainer"):
        until(lambda: run_of(ws, run).step >= 6, 60, OFTEN)
        (actor,) = (one for one in head.processes() if "JobSupervisor" in "".join(one.cmdline()))
        actor.kill()
        until(ended(ws, run, RunState.INTERRUPTED), 60, OFTEN)
        assert trainers_alive(ws, run) == []
        assert "the trainer is gone; `studio runs resume" in run_of(ws, run).reason
        assert "goes on from step" in run_of(ws, run).reason
        assert not any(run.id in " ".join(one.cmdline()) for one in head.processes() if alive(one))


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_what_has_no_room_waits_and_can_be_stopped(ws: Workspace, head: Head):
    """Two processes want two GPUs, and the node has one."""
    Settings.save(ws.home, {"ray_address": head.address, "ray_token": head.token})
    run = make_run(ws, None, "train.processes=2", place="ray")
    with working(ws, "tests.support.fake_trainer"):
        until(lambda: "waits for room on the cluster (2 processes)" in run_of(ws, run).reason)
        jobs, name = Jobs(Cluster.of(ws.home)), f"lora-{run.id}-1"
        until(lambda: (seen := jobs.look(name)) is not None and seen.status == "PENDING")
        launch.stop(ws, run)
        until(ended(ws, run, RunState.STOPPED))
