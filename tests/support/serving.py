"""`studio app` in a process of its own, as a person starts it."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

START_SECONDS = 30


@contextlib.contextmanager
def running_app(home: Path, **environment: str) -> Iterator[str]:
    """The whole app with its worker on the workspace `home`; yields its address."""
    command = ["-m", "studio.cli", "--home", str(home), "app", "--no-browser", "--port"]
    with _server(command, environment) as address:
        yield address


@contextlib.contextmanager
def pages_alone(home: Path) -> Iterator[str]:
    """The pages without a worker; yields their address."""
    with _server(["-m", "tests.app.pages_only", str(home)], {}) as address:
        yield address


@contextlib.contextmanager
def _server(command: Sequence[str], environment: dict[str, str]) -> Iterator[str]:
    """A server whose last argument is its port."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    variables = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    with subprocess.Popen(
        [sys.executable, *command, str(port)], env=variables, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            wait_until_healthy(address, process)
            yield address
        finally:
            process.terminate()
            try:
                process.wait(60)
            finally:
                process.kill()


def wait_until_healthy(address: str, process: "subprocess.Popen[str]") -> float:
    """Seconds until the server answers.

    Raises:
        RuntimeError: it ended, or does not answer in time.
    """
    started = time.monotonic()
    while time.monotonic() - started < START_SECONDS:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended: {process.stderr.read() if process.stderr else ''}")
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/_stcore/health", timeout=1):
            return time.monotonic() - started
        time.sleep(0.1)
    raise RuntimeError("the server does not answer")


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return trial.getsockname()[1]
