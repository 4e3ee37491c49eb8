"""Trainers and samplers forked from a server that has loaded their libraries: a start costs 0.1 s, not 7.

Only their start is another one: they are processes of their own, with pipes and exit codes of their own.
Walks that call `studio` in a process (`Studio(apart=True)`, `studio app`) start them the usual way.
"""

import multiprocessing
import os
import resource
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerContext
from multiprocessing.reduction import DupFd
from types import SimpleNamespace
from typing import IO, Any

import pytest

from studio.runs.process import start_time
from trainers.standby import ARGUMENTS, ENVIRONMENT, show

PYTHON = sys.executable
PRELOAD = "tests.support.preload"
MODULES = (
    "trainers.run",
    "trainers.standby",
    "studio.sampling.server",
    "studio.datasets.captioners.child",
    "studio.pocket.build.worker",
    "studio.evidence.task",
    "tests.support.fake_trainer",
)
FILE_LIMIT = "STUDIO_TEST_FILE_LIMIT"  # environment: bytes that the process may write into one file
USERS = (
    "studio.runs.executors",
    "studio.runs.standby",
    "studio.sampling.client",
    "studio.datasets.captioners.run",
    "studio.pocket.build.together",
    "studio.runs.chores",
)


def fork_starts(patch: pytest.MonkeyPatch) -> None:
    """Let what `USERS` start from this process be forked."""
    names = ("PIPE", "DEVNULL", "STDOUT", "TimeoutExpired")
    stand_in = SimpleNamespace(Popen=_popen, **{name: getattr(subprocess, name) for name in names})
    for user in USERS:
        patch.setattr(f"{user}.subprocess", stand_in)


def forks() -> ForkServerContext:
    """Of processes that are forked from the server that has loaded the libraries."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOAD])
    return context


class Forked:
    """What `subprocess.Popen` would be for `python -m MODULE ...`, as far as our code asks.

    Args:
        module: Its name.
        arguments: Of its command line.
        stdin, stdout, stderr: As for `subprocess.Popen`; pipes carry text.
        env: The whole environment; ours without.
        start_new_session: As for `subprocess.Popen`.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        stdin: Any = None,
        stdout: Any = None,
        stderr: Any = None,
        start_new_session: bool = False,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.stdin: IO[str] | None = None
        self.stdout: IO[str] | None = None
        mine: list[int] = []  # to be closed here once the child has them
        if stdin == subprocess.PIPE:
            stdin, ours = os.pipe()
            mine.append(stdin)
            self.stdin = os.fdopen(ours, "w", encoding="utf-8")
        if stdout == subprocess.PIPE:
            ours, stdout = os.pipe()
            mine.append(stdout)
            self.stdout = os.fdopen(ours, encoding="utf-8")
        streams = [_Inherited(_number(stream, own)) for own, stream in enumerate((stdin, stdout, stderr))]
        kept = [_Inherited(number) for number in pass_fds]
        context = forks()
        variables = dict(os.environ if env is None else env)
        call = (module, list(arguments), variables, streams, kept, start_new_session)
        self._process = context.Process(target=become, args=call)
        self._process.start()
        for number in mine:
            os.close(number)

    @property
    def pid(self) -> int:
        """Of the process, and of its group when it has a session of its own."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it lives; negative: killed by that signal."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The same; how one that is gone has ended is waited for: the server is about to say it."""
        if self.returncode is None and start_time(self.pid) is None:
            self._process.join(10.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Exit code.

        Raises:
            subprocess.TimeoutExpired: it lives on.
        """
        self._process.join(timeout)
        code = self.returncode
        if code is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0.0)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """What it still says on its standard output, to its end."""
        said = self.stdout.read() if self.stdout is not None else ""
        self.wait(timeout)
        return said, None

    def send_signal(self, number: signal.Signals) -> None:
        """To the process alone."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)


def _popen(command: Sequence[str], **options: Any) -> Any:
    python, *words = (word for word in command if word != "-u")
    if python != PYTHON or words[0] != "-m" or words[1] not in MODULES:
        return subprocess.Popen(command, **options)
    for name in ("text", "encoding"):
        options.pop(name, None)
    return Forked(words[1], words[2:], **options)


def become(
    module: str,
    arguments: list[str],
    env: dict[str, str],
    streams: list[int],
    _kept: list[int],
    session: bool,
) -> None:
    """In a child that was forked: go on as `python -m MODULE ARGUMENTS`."""
    if session:
        os.setsid()
    os.environ.clear()
    os.environ.update(env)
    _show([PYTHON, "-m", module, *arguments], env)
    for target, source in enumerate(streams):
        if source == subprocess.DEVNULL:
            source = os.open(os.devnull, os.O_RDWR)
        os.dup2(1 if source == subprocess.STDOUT else source, target)
    sys.stdin = os.fdopen(os.dup(0), encoding="utf-8")
    for name, number in (("stdout", 1), ("stderr", 2)):
        setattr(sys, name, os.fdopen(os.dup(number), "w", buffering=1, encoding="utf-8"))
    if limit := env.get(FILE_LIMIT):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writes beyond it fail with EFBIG, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    sys.argv = [module, *arguments]
    sys.modules.pop(module, None)  # runpy warns of a module that is loaded already
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _show(words: Sequence[str], env: Mapping[str, str]) -> None:
    """Let the system say of this process what it would of the other: trainers are found by these two."""
    ours = sorted(env.items(), key=lambda item: not item[0].startswith("STUDIO_"))
    show(ARGUMENTS, words)
    texts = [f"{name}={value}" for name, value in ours]
    while texts and not show(ENVIRONMENT, texts):  # as much as there is room for
        texts.pop()


class _Inherited:
    """A descriptor, or `subprocess.DEVNULL` or `STDOUT`, on its way to the child."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __reduce__(self) -> tuple[Any, ...]:
        if self._number < 0:
            return int, (self._number,)
        return _arrived, (DupFd(self._number),)


def _arrived(descriptor: Any) -> int:
    return descriptor.detach()


def _number(stream: Any, own: int) -> int:
    if stream is None:
        return own
    return stream if isinstance(stream, int) else stream.fileno()
