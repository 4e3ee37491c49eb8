"""Starting a trainer: which command, which environment, which process.

One process is plain Python with the environment that `accelerate launch` would have prepared (after
`accelerate.utils.launch.prepare_simple_launcher_cmd_env`): that saves 5 s of imports and an extra parent.
Several processes go through `accelerate launch` with a configuration in the run directory, so that what was
configured for other programs does not count; on a CPU through torch's own launcher. Where a trainer waits for
a run like this one (`standby`), it takes it.
"""

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import psutil

from registry.errors import StudioError
from registry.files import write_json
from registry.records import now
from studio.runs.device import has_gpu, memory_kills, thread_environment
from studio.runs.outcome import ATTEMPT
from studio.runs.process import TOKEN_VARIABLE, ProcessIdentity
from studio.runs.standby import Standby
from studio.settings import child_environment
from trainers.rundir import KEY_VARIABLE, LOG, PROCESS, RunDir

LOCK = "trainer.lock"  # held by the living trainer through a descriptor it inherited
MODULE = "trainers.run"
PATIENCE = 5.0  # seconds for a started process to be seen as what it is
ACCELERATE = "accelerate.json"  # in the run directory: how several processes are started


class Trainer(Protocol):
    """A trainer as its supervisor knows it, wherever it runs. Nothing here waits for anything."""

    @property
    def called(self) -> str:
        """What a person may look for: "pid 4711", "job ..."."""
        ...

    def to_json(self) -> dict[str, Any]:
        """For process.json and the run's row."""
        ...

    def alive(self) -> bool:
        """Whether it trains, or will; once false, it writes nothing any more."""
        ...

    def waits(self) -> str:
        """Why no sign of life is to be expected of it now, in a few words; "" where one is."""
        ...

    def ask_to_stop(self) -> None:
        """Ask for a checkpoint and an end; to be asked once."""
        ...

    def kill(self) -> None:
        """End it now, with all that belongs to it; may be called again, also after its end."""
        ...


class Executor(Protocol):
    """Something that can run a trainer. `Any` stands for the kind of trainer that it starts itself."""

    here: bool  # its trainers use this machine, and end with the worker

    def start(self, rundir: RunDir, processes: int = 1) -> Trainer:
        """Start the trainer of `rundir`; process.json is durable when this returns."""
        ...

    def find(self, rundir: RunDir) -> Trainer | None:
        """The trainer of `rundir` that lives, or has ended without being settled, whoever started it."""
        ...

    def exit_code(self, trainer: Any) -> int | None:
        """Exit code of an ended trainer (negative: signal); None while it lives or when nobody can know."""
        ...

    def memory_killed(self, trainer: Any) -> bool:
        """Whether its machine killed a process for memory since it was started, or found."""
        ...

    def close(self) -> None:
        """The worker ends: look after nothing any more. What lives lives on, for the next one to find."""
        ...


class LocalExecutor:
    """Trainers as processes of this machine, each in a session of its own.

    Args:
        key: The workspace key, hex; signs checkpoint manifests. Goes into the environment only.
        module: What `python -m` runs; tests put a trainer without a model here.
        extra: More environment, for example GPU ids.
        standby: Has a trainer ready, now and then.
    """

    here = True

    def __init__(
        self,
        key: str,
        *,
        module: str = MODULE,
        extra: Mapping[str, str] | None = None,
        standby: Standby | None = None,
    ) -> None:
        self._key, self._module, self._extra = key, module, dict(extra or {})
        self._standby = standby
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._kills_before: dict[int, int] = {}  # by pid: `memory_kills()` when it was started or found

    def start(self, rundir: RunDir, processes: int = 1) -> ProcessIdentity:
        """Start the trainer of `rundir` with `processes` ranks.

        Raises:
            StudioError: another trainer lives there, or the system refuses to start one.
        """
        identity = self.spawn(rundir, processes)
        write_json(rundir.file(PROCESS), identity.to_json())
        return identity

    def spawn(self, rundir: RunDir, processes: int = 1) -> ProcessIdentity:
        """The same for who keeps the record of it: process.json stays as it is."""
        kills, variables = memory_kills(), environment(rundir, processes, self._key) | self._extra
        lock = os.open(rundir.file(LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise StudioError(f"run {rundir.path.name}", "already has a living trainer") from None
            if processes > 1 and has_gpu():
                write_json(rundir.file(ACCELERATE), configuration(processes))
            with rundir.file(LOG).open("ab") as log:
                log.write(f"{ATTEMPT}{now().isoformat(timespec='seconds')} ---\n".encode())
                log.flush()
                files = lock, log.fileno()
                taken = self._take(rundir, variables, kills, files) if processes == 1 else None
                if taken is not None:
                    return taken
                token = uuid4().hex
                child = subprocess.Popen(
                    command(rundir.path, processes, self._module),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=variables | {TOKEN_VARIABLE: token},
                    start_new_session=True,
                    pass_fds=(lock,),  # the lock lives as long as the trainer, also when this worker dies now
                )
        except OSError as error:
            raise StudioError(
                f"run {rundir.path.name}", f"cannot be started ({(error.strerror or str(error)).lower()})"
            ) from error
        finally:
            os.close(lock)
        return self._known(child, processes, token, kills)

    def _take(
        self, rundir: RunDir, variables: Mapping[str, str], kills: int, files: tuple[int, int]
    ) -> ProcessIdentity | None:
        """The trainer that waits, as this run's; None when there is none, or it does not take the run."""
        if self._standby is None:
            return None
        waiting = self._standby.take(variables)
        self._standby.remember(rundir.path, variables)
        if waiting is None:
            return None
        identity = self._known(waiting.child, 1, waiting.token, kills)
        write_json(rundir.file(PROCESS), identity.to_json())  # first: we may die once it has the run
        return identity if waiting.become(rundir.path, *files) else None

    def _known(
        self, child: "subprocess.Popen[bytes]", processes: int, token: str, kills: int
    ) -> ProcessIdentity:
        self._children[child.pid], self._kills_before[child.pid] = child, kills
        identity = ProcessIdentity.of(child.pid, processes, token)
        # Where it has ended already, poll() of the child knows how.
        return identity or ProcessIdentity(child.pid, -1.0, "", processes, token)

    def find(self, rundir: RunDir) -> ProcessIdentity | None:
        """The living trainer of `rundir`: process.json if it still fits, else by its command line.

        The second way is for a worker that died between starting the trainer and writing process.json.
        """
        identity = read_identity(rundir)
        if identity is None or not identity.alive():
            identity = self._without_record(rundir)
        if identity is not None:
            self._kills_before.setdefault(identity.pid, memory_kills())
        return identity

    def _without_record(self, rundir: RunDir) -> ProcessIdentity | None:
        """Looked for as long as the lock is held: a process just begun has no command line yet."""
        patience = time.monotonic() + PATIENCE
        while locked(rundir):
            identity = self._by_command_line(rundir)
            if identity is not None or time.monotonic() > patience:
                return identity
            time.sleep(0.02)
        return None

    def _by_command_line(self, rundir: RunDir) -> ProcessIdentity | None:
        trainers: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                words = process.cmdline()
                if self._module in words and str(rundir.path) in words:
                    trainers[process.pid] = process
        for pid, process in trainers.items():
            with suppress(psutil.Error, KeyError):  # gone, or its environment is not there yet
                if process.ppid() not in trainers:  # the launcher, not one of its ranks
                    token = process.environ()[TOKEN_VARIABLE]
                    return ProcessIdentity.of(pid, _ranks(process.cmdline()), token)
        return None

    def exit_code(self, trainer: ProcessIdentity) -> int | None:
        """Exit code of a trainer this executor started; None for an adopted one."""
        child = self._children.get(trainer.pid)
        return None if child is None else child.poll()

    def memory_killed(self, trainer: ProcessIdentity) -> bool:
        """Whether the kernel has killed a process for memory since this one was started or found."""
        return memory_kills() > self._kills_before.get(trainer.pid, memory_kills())

    def close(self) -> None:
        """Trainers are processes of their own."""


def command(folder: Path, processes: int, module: str = MODULE) -> list[str]:
    """The argv of a trainer; the run directory is its only argument."""
    if processes == 1:
        return [sys.executable, "-m", module, str(folder)]
    ranks = str(processes)
    if not has_gpu():  # accelerate launch --cpu runs one process, whatever number it is given
        spread = ["torch.distributed.run", "--standalone", "--nproc_per_node", ranks, "-m"]
    else:
        spread = ["accelerate.commands.launch", "--config_file", str(folder / ACCELERATE)]
        spread += ["--num_processes", ranks, "--module"]
    return [sys.executable, "-m", *spread, module, str(folder)]


def configuration(processes: int) -> dict[str, Any]:
    """What `accelerate launch --config_file` reads: one process a GPU of this machine.

    Precision and who holds which weights (`train.base_sharding`) are the trainer's own choice.
    """
    return {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "MULTI_GPU",
        "num_machines": 1,
        "machine_rank": 0,
        "num_processes": processes,
        "gpu_ids": "all",
        "main_process_port": 0,  # a free one
        "mixed_precision": "no",
        "dynamo_config": {"dynamo_backend": "NO"},
        "use_cpu": False,
        "debug": False,
    }


def environment(rundir: RunDir, processes: int, key: str) -> dict[str, str]:
    """The environment of a trainer: ours, and no network for the model libraries unless the base needs it."""
    cpu = not has_gpu()
    variables = child_environment()
    variables |= {
        KEY_VARIABLE: key,
        "DIFFUSERS_DISABLE_REMOTE_CODE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        **thread_environment(processes),
        # What accelerate's simple launcher sets, but for KMP_AFFINITY, which would pin trainer and sampler to
        # the same cores. Precision is the trainer's own choice from the recipe.
        "ACCELERATE_USE_CPU": str(cpu),
        "ACCELERATE_MIXED_PRECISION": "no",
        "ACCELERATE_DYNAMO_BACKEND": "NO",
        "ACCELERATE_DYNAMO_MODE": "default",
        "ACCELERATE_DYNAMO_USE_FULLGRAPH": "False",
        "ACCELERATE_DYNAMO_USE_DYNAMIC": "False",
        "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "False",
    }
    if rundir.read_env().base_kind != "hub":
        variables |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return variables


def read_identity(rundir: RunDir) -> ProcessIdentity | None:
    """What process.json says; None when there is none or it is damaged."""
    from registry.errors import Damaged
    from registry.files import read_json

    try:
        return ProcessIdentity.from_json(read_json(rundir.file(PROCESS)))
    except (FileNotFoundError, Damaged):
        return None


def locked(rundir: RunDir) -> bool:
    """Whether a living process holds the trainer's lock of `rundir`."""
    try:
        descriptor = os.open(rundir.file(LOCK), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _ranks(words: list[str]) -> int:
    """How many ranks a trainer's command line asks for."""
    flag = next((word for word in words if word in {"--num_processes", "--nproc_per_node"}), None)
    return int(words[words.index(flag) + 1]) if flag else 1
