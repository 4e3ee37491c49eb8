"""A real Ray head on 127.0.0.1, with one make-believe GPU and a token; ended by the pids it started."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import psutil

from tests.support.serving import free_port

ROOT = Path(__file__).parents[2]
START_SECONDS = 90
MARK = "LORA_STUDIO_TEST_HEAD"  # environment of all its processes


@dataclass(frozen=True)
class Head:
    """A cluster of one node."""

    address: str
    token: str
    mark: str

    def processes(self) -> list[psutil.Process]:
        """All of it that lives, jobs included."""
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


@contextlib.contextmanager
def ray_head() -> Iterator[Head]:
    """Start one; when this ends nothing of it is left."""
    port, folder = free_port(), Path(tempfile.mkdtemp(prefix="ray"))  # short: sockets lie below it
    head = Head(f"http://127.0.0.1:{port}", uuid4().hex, uuid4().hex)
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--port=0",
        "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}",
        f"--dashboard-agent-listen-port={free_port()}", "--min-worker-port=0", "--max-worker-port=0",
        f"--ray-client-server-port={free_port()}", "--no-monitor", "--include-log-monitor=False",
        "--disable-usage-stats", "--num-cpus=2", "--num-gpus=1", "--object-store-memory=80000000",
        f"--temp-dir={folder}",
    ]  # fmt: skip
    variables = os.environ | {
        MARK: head.mark,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else 127.0.0.1 is replaced and it listens outside
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": head.token,
        "RAY_enable_worker_prestart": "0",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    with (folder / "head.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder,
            start_new_session=True,
        )  # fmt: skip
    try:
        _wait(head, process, folder / "head.log")
        yield head
    finally:
        _end(head, process)
        shutil.rmtree(folder, ignore_errors=True)


def _wait(head: Head, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Until it takes jobs."""
    request = urllib.request.Request(
        f"{head.address}/api/jobs/", headers={"Authorization": f"Bearer {head.token}"}
    )
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=10):
            return
        time.sleep(0.3)
    raise AssertionError(f"the head does not answer\n{log.read_text()}")


def _end(head: Head, process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(20)
    for left in head.processes():
        with contextlib.suppress(psutil.Error):
            left.kill()
    process.wait(10)
