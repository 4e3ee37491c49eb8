"""`python -m studio.runs.node DIR NUMBER PROCESSES MODULE`: what a job of a cluster runs on its node.

It starts the trainer as a worker does at home, with this node's Python, devices and cores, and stays beside
it: it does what the studio wishes, and writes down how the trainer ended. The log goes to the run directory.
Exit codes are the trainer's; 1 with one line on stderr when it was not started.
"""

import os
import signal
import socket
import sys
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType

from registry.errors import StudioError
from registry.files import storage_error
from studio.runs.attempts import Attempt
from studio.runs.executors import LocalExecutor
from studio.runs.process import ProcessIdentity
from trainers.rundir import LOG, RECIPE, RunDir, Status

LOOK = 0.5  # seconds between looks at the wish
TELLING = ("torch", "diffusers", "transformers", "peft")  # another version may compute another adapter


class Job:
    """One attempt on this node.

    Args:
        attempt: Which.
        key: The workspace key, hex.
        module: The trainer.
    """

    def __init__(self, attempt: Attempt, key: str, module: str) -> None:
        self._attempt, self._rundir = attempt, attempt.rundir
        self._executor = LocalExecutor(key, module=module)
        self._asked = False

    def run(self, processes: int) -> int:
        """Train, unless that is not wanted any more; returns the trainer's exit code.

        Raises:
            StudioError: the attempt was started before, or the trainer cannot be started.
        """
        self._begin()
        signal.signal(signal.SIGTERM, self._on_signal)
        code, killed = 1, False
        try:
            if self._attempt.wish() or self._asked:
                code = 0
            elif missing := missing_files(self._rundir):
                self._rundir.write_status(
                    Status(state="failed", kind="input", reason=str(missing), time=time.time())
                )
                code = 2
            else:
                code, killed = self._train(processes)
        finally:
            self._attempt.end(code, memory_killed=killed)
        return code

    def _begin(self) -> None:
        """Say that we are here, before the wish is read: who cancels writes it and then looks for this."""
        names = [name for name in self._rundir.read_env().versions if name != "python"]
        versions = {name: found for name in names if (found := _version(name))}
        facts = {"host": socket.gethostname(), "pid": os.getpid(), "versions": versions}
        try:
            self._attempt.begin(facts)
        except FileExistsError:
            raise StudioError(f"job {self._attempt.job}", "was started before", "resume the run") from None
        except OSError as error:
            raise storage_error(self._attempt.folder, error) from error

    def _train(self, processes: int) -> tuple[int, bool]:
        trainer = self._executor.spawn(self._rundir, processes)
        guard(trainer)
        self._compare_versions()
        while (code := self._executor.exit_code(trainer)) is None:
            wish = ""
            with suppress(OSError):  # storage that is away for a moment is no reason to end a training
                wish = self._attempt.wish()
            if wish == "kill":
                trainer.kill()
            elif wish == "stop" and not self._asked:
                self._asked = True
                trainer.ask_to_stop()
            time.sleep(LOOK)
        trainer.kill()  # ranks that outlived their launcher
        return code, self._executor.memory_killed(trainer)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Ray stops a job by a SIGTERM to all its processes: the trainer has it too, a second one kills."""
        del number, frame
        self._asked = True

    def _compare_versions(self) -> None:
        """A line in the log for each library that is another one than the studio's."""
        theirs = self._rundir.read_env().versions
        lines = [
            f"warning: this node has {name} {here}, the studio {theirs[name]}\n"
            for name in TELLING
            if name in theirs and (here := _version(name)) and here != theirs[name]
        ]
        with self._rundir.file(LOG).open("a", encoding="utf-8") as log:
            log.writelines(lines)


def guard(trainer: ProcessIdentity) -> None:
    """Let the trainer not outlive us, in whatever way we end: a cluster kills jobs, and gives their GPU away.

    A small process of its own session waits for the end of a pipe that only we hold open.
    """
    reading, writing = os.pipe()
    if os.fork():
        os.close(reading)
        return
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.close(writing)
        os.read(reading, 1)
        while trainer.members():
            trainer.kill()
            time.sleep(0.1)
    finally:
        os._exit(0)


def missing_files(rundir: RunDir) -> StudioError | None:
    """What the run needs and this node does not see."""
    env = rundir.read_env()
    places = [rundir.resolve(item.image) for item in rundir.read_manifest(1)]
    if env.base_kind != "hub":
        places += [rundir.resolve(place) for place in (env.base_location, env.base_config) if place]
    for place in places:
        if not place.exists():
            wrong = f"is not there on node {socket.gethostname()}"
            return StudioError(
                str(place), wrong, "let all nodes mount it under this path, then resume the run"
            )
    return None


def workspace_key(rundir: RunDir) -> str:
    """The key that signs checkpoints, from the workspace on the mounted storage.

    It is nowhere in the job: a cluster shows commands and environments of jobs to all its users.

    Raises:
        StudioError: the run, or the key, is not there for us.
    """
    host, path = socket.gethostname(), rundir.path.parents[1] / "key"
    if not rundir.file(RECIPE).is_file():
        do = "let all nodes mount the workspace; where their path is another one, set ray_storage to it"
        raise StudioError(str(rundir.path), f"is not there on node {host}", do)
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        do = "let the jobs of the cluster run as the user who owns the workspace"
        raise StudioError(str(path), f"cannot be read on node {host} ({why})", do) from error


def _version(name: str) -> str:
    with suppress(PackageNotFoundError):
        return version(name)
    return ""


def main() -> int:
    """Entry point of a job."""
    folder, number, processes, module = sys.argv[1:]
    rundir = RunDir(Path(folder))
    try:
        return Job(Attempt(rundir, int(number)), workspace_key(rundir), module).run(int(processes))
    except StudioError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
