"""A trainer that waits for its run: what it trains, how it is found, and how it may fail unnoticed."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from registry.errors import BadInput
from registry.hashing import hash_adapter
from studio.runs import executors
from studio.runs import standby as module
from studio.runs.executors import LocalExecutor, command, locked
from studio.runs.process import TOKEN_VARIABLE, ProcessIdentity
from studio.runs.standby import Standby, Waiting
from studio.runs.worker import Worker
from studio.settings import Settings
from studio.workspace import Workspace
from tests.support.runs import KEY, environment, write_run
from tests.support.supervision import QUICK, make_run, make_worker, until
from trainers.checkpoints import read_metadata
from trainers.rundir import LOG, PROCESS, ManifestItem, RunDir

CHANGES = {"train.max_steps": 3, "preview.every": 2, "log.tensorboard": True}


class Killed(BaseException):
    """Stands for SIGKILL to the worker: no handler of ours catches it."""


class Starts:
    """Run directories of one name and recipe, and what starts trainers in them."""

    def __init__(self, folder: Path, base: Path, pictures: list[ManifestItem]) -> None:
        self._folder, self._base, self._pictures = folder, base, pictures
        self.standby = Standby("on")
        self.executor = self.other(standby=self.standby)

    def other(self, **options: object) -> LocalExecutor:
        """One more executor, as another worker has it."""
        return LocalExecutor(KEY, extra=environment(), **options)  # pyright: ignore[reportArgumentType]

    def rundir(self, place: str, **changes: object) -> RunDir:
        """A run directory; all have one name, for it is in the adapter's metadata."""
        named = {key.replace("__", "."): value for key, value in changes.items()}
        folder = self._folder / place / "run"
        return write_run(folder, self._base, self._pictures, CHANGES | named, cache="../../cache")

    def prepared(self) -> int:
        """Pid of a trainer that is ready for runs like the first one."""
        first = RunDir(self._folder / "cold" / "run")
        self.standby.remember(first.path, executors.environment(first, 1, KEY) | environment())
        until(lambda: self.standby.tick(training=False, idle=True) or self.standby.ready, 60)
        assert self.standby.pid is not None
        return self.standby.pid

    def ended(self, identity: ProcessIdentity) -> int:
        """Exit code."""
        until(lambda: self.executor.exit_code(identity) is not None, 60)
        code = self.executor.exit_code(identity)
        assert code is not None
        return code


@pytest.fixture(scope="module")
def cold(
    tmp_path_factory: pytest.TempPathFactory, tiny_sd15: Path, pictures: list[ManifestItem]
) -> Iterator[tuple[Starts, RunDir]]:
    """A run that was started the usual way, and filled the caches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "QUIET", 0.0)
        patch.setattr(module, "LOOK_EVERY", 0.0)
        ours = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
        patch.setattr(
            "studio.runs.executors.child_environment", lambda: ours
        )  # pytest's changes all the time
        starts = Starts(tmp_path_factory.mktemp("starts"), tiny_sd15, pictures)
        rundir = starts.rundir("cold")
        assert starts.standby.pid is None
        assert starts.ended(starts.executor.start(rundir)) == 0
        yield starts, rundir
        starts.standby.close()


def learned(rundir: RunDir) -> tuple[str, dict[str, str]]:
    """Hash of the adapter's tensors, and its metadata, which the library writes in any order."""
    return hash_adapter(rundir.adapter).tensor_sha256, read_metadata(rundir.adapter)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_it_becomes_the_trainer_and_learns_the_same_to_the_bit(cold: tuple[Starts, RunDir]):
    starts, before = cold
    pid, rundir = starts.prepared(), starts.rundir("warm")
    waiting = psutil.Process(pid).cmdline()
    assert waiting[2] == "trainers.standby"
    assert str(before.path.parent.parent) not in " ".join(waiting)
    identity = starts.executor.start(rundir)
    assert identity.pid == pid
    assert os.getsid(pid) == pid
    assert locked(rundir)
    assert starts.standby.pid is None
    assert not starts.standby.ready
    said = psutil.Process(pid).cmdline()
    assert [word for word in said if word] == command(rundir.path, 1)
    assert psutil.Process(pid).environ()[TOKEN_VARIABLE] == identity.token
    assert starts.other().find(rundir) == identity  # by process.json
    rundir.file(PROCESS).unlink()
    assert starts.other().find(rundir) == identity  # by its command line
    assert starts.ended(identity) == 0
    assert not locked(rundir)
    assert learned(rundir) == learned(before)
    assert [line["loss"] for line in rundir.read_metrics()] == [
        line["loss"] for line in before.read_metrics()
    ]
    pictures = [{line["file"]: (r.path / line["file"]).read_bytes() for line in r.previews()}
                for r in (before, rundir)]  # fmt: skip
    assert pictures[0] == pictures[1]
    assert len(pictures[0]) == 2 * 4
    assert "finished at step 3" in rundir.file(LOG).read_text()


def test_it_stops_as_any_trainer_does(cold: tuple[Starts, RunDir]):
    starts, _ = cold
    starts.prepared()
    rundir = starts.rundir("stopped", train__max_steps=500)
    identity = starts.executor.start(rundir)
    until(lambda: bool(rundir.read_metrics()), 60)
    identity.ask_to_stop()
    assert starts.ended(identity) == 0
    status = rundir.read_status()
    assert status is not None
    assert status.state == "stopped"
    assert rundir.checkpoints()


@pytest.mark.parametrize("fault", ["dead", "hangs", "other recipe"])
def test_one_that_fails_makes_room_for_the_usual_start(
    fault: str, cold: tuple[Starts, RunDir], monkeypatch: pytest.MonkeyPatch
):
    """`other recipe`: it needs bitsandbytes, which was hidden from the one that waits."""
    starts, before = cold
    pid = starts.prepared()
    rundir = starts.rundir(fault, **({"optimizer__name": "lion8bit"} if fault == "other recipe" else {}))
    if fault == "dead":
        os.kill(pid, signal.SIGKILL)
        until(lambda: gone(pid))
    elif fault == "hangs":
        monkeypatch.setattr(module, "ANSWER", 0.2)
        os.kill(pid, signal.SIGSTOP)
    identity = starts.executor.start(rundir)
    assert identity.pid != pid
    assert gone(pid)
    assert starts.other().find(rundir) == identity
    code = starts.ended(identity)
    if fault != "other recipe":
        assert code == 0
        assert learned(rundir) == learned(before)
    said = rundir.file(LOG).read_text()
    assert said.count("--- ") == 1
    assert (module.REFUSED.decode() in said) == (fault != "dead")  # that one is not asked


def test_another_environment_is_none_of_its(cold: tuple[Starts, RunDir]):
    starts, _ = cold
    pid = starts.prepared()
    assert starts.standby.take({"HF_HUB_OFFLINE": "0"}) is None
    assert starts.standby.pid is None
    assert gone(pid)


def test_a_worker_that_dies_handing_over_loses_nothing(
    cold: tuple[Starts, RunDir], monkeypatch: pytest.MonkeyPatch
):
    starts, before = cold
    become = Waiting.become

    def killed_after(waiting: Waiting, folder: Path, lock: int, log: int) -> bool:
        assert become(waiting, folder, lock, log)
        raise Killed

    monkeypatch.setattr(Waiting, "become", killed_after)
    pid, rundir = starts.prepared(), starts.rundir("adopted")
    with pytest.raises(Killed):
        starts.executor.start(rundir)
    adopted = starts.other().find(rundir)
    assert adopted is not None
    assert adopted.pid == pid
    assert starts.ended(adopted) == 0
    assert learned(rundir) == learned(before)

    def killed_before(waiting: Waiting, *_: object) -> bool:
        waiting._control.close()  # pyright: ignore[reportPrivateUsage] # as the system does
        raise Killed

    monkeypatch.setattr(Waiting, "become", killed_before)
    pid, rundir = starts.prepared(), starts.rundir("never begun")
    with pytest.raises(Killed):
        starts.executor.start(rundir)
    until(lambda: gone(pid))
    assert starts.other().find(rundir) is None
    assert rundir.read_status() is None


def test_it_ends_when_the_worker_is_gone_or_nobody_comes(
    cold: tuple[Starts, RunDir], monkeypatch: pytest.MonkeyPatch
):
    starts, _ = cold
    standby = starts.standby
    pid = starts.prepared()
    control = standby._control  # pyright: ignore[reportPrivateUsage]
    assert control is not None
    control.close()  # what is left of a worker after kill -9
    until(lambda: gone(pid))
    pid = starts.prepared()
    monkeypatch.setattr(standby, "_seconds", 0.05)
    for _ in range(2):
        standby.tick(training=True, idle=False)
        assert standby.pid == pid
    until(lambda: standby.tick(training=False, idle=True) or standby.pid is None)
    assert gone(pid)
    standby.tick(training=False, idle=True)
    assert standby.pid is None  # until there is a run again


def test_memory_decides_and_a_faulty_one_is_not_tried_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "QUIET", 0.0)
    monkeypatch.setattr(module, "LOOK_EVERY", 0.0)
    started: list[int] = []

    def refused(*_: object, **__: object) -> None:
        started.append(1)
        raise OSError

    monkeypatch.setattr(module, "subprocess", type("", (), {"Popen": refused, "DEVNULL": -3}))
    free = {"bytes": module.ENOUGH - 1}
    memory = type("", (), {"available": property(lambda _: free["bytes"])})
    monkeypatch.setattr(module.psutil, "virtual_memory", lambda: memory())
    standby = Standby("auto")
    standby.tick(training=False, idle=True)
    standby.remember(tmp_path, {})
    standby.tick(training=False, idle=True)
    assert not started
    free["bytes"] = module.ENOUGH
    monkeypatch.setattr(module, "QUIET", 60.0)
    standby.tick(training=False, idle=True)
    assert not started  # the machine was busy just now
    monkeypatch.setattr(module, "QUIET", 0.0)
    for _ in range(5):
        standby.tick(training=False, idle=True)
    assert len(started) == module.MOST_DEATHS
    off = Standby("off")
    off.remember(tmp_path, {})
    off.tick(training=False, idle=True)
    assert len(started) == module.MOST_DEATHS


def test_the_worker_says_when_it_may_be_prepared_and_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    told: list[tuple[bool, bool]] = []
    closed: list[bool] = []
    monkeypatch.setattr(Standby, "tick", lambda _, *, training, idle: told.append((training, idle)))
    monkeypatch.setattr(Standby, "close", lambda _: closed.append(True))
    ws = Workspace.open(tmp_path / "home")
    make_run(ws, None, "train.max_steps=4", "checkpoints.every=2")
    make_worker(ws).run(once=True)
    assert (True, False) in told
    assert told[-1] == (False, True)
    assert closed == [True]


def test_the_settings_reach_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made: list[tuple[str, float]] = []
    monkeypatch.setenv("STUDIO_STANDBY", "on")
    monkeypatch.setenv("STUDIO_STANDBY_MINUTES", "3")
    monkeypatch.setattr("studio.runs.worker.Standby", lambda *words: made.append(words))
    Worker(Workspace.open(tmp_path / "home"), limits=QUICK)
    assert made == [("on", 3.0)]
    monkeypatch.setenv("STUDIO_STANDBY", "always")
    with pytest.raises(BadInput):
        Settings.load(tmp_path)
