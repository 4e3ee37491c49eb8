"""A worker in the background: started when none holds the workspace, ended when nobody needs it any more.

`python -m studio.runs.background HOME PID`: PID is the process for whose sake it works, for example the app.
When that is gone the worker does what is in the queue and ends.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from registry.errors import StudioError, WorkspaceBusy
from registry.files import storage_error
from registry.records import Job, JobState
from studio.runs.process import ProcessIdentity
from studio.settings import CLUSTER_TOKEN, child_environment

if TYPE_CHECKING:
    from studio.workspace import Workspace

LOG = "worker.log"  # in cache/
PATIENCE = 20.0  # seconds until the new worker holds the workspace
RETRY = 1.0  # seconds between attempts while another process holds it


def ensure_worker(ws: "Workspace") -> int:
    """Start a worker that outlives us, unless one works already; returns the pid of who holds the workspace.

    Cheap when there is one, so call it whenever something is put into the queue: a worker that was left over
    from an earlier app ends when the queue is empty.

    Raises:
        StudioError: it did not come up; its last line says why.
    """
    holder = ws.holder()
    if holder is not None:
        return int(holder["pid"])
    log = ws.home / "cache" / LOG
    try:
        stream = log.open("ab")
    except OSError as error:
        raise storage_error(log, error) from error
    with stream:
        child = subprocess.Popen(
            [sys.executable, "-m", "studio.runs.background", str(ws.home), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=child_environment(CLUSTER_TOKEN),
            start_new_session=True,
        )
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        holder = ws.holder()
        if holder is not None:
            return int(holder["pid"])
        if child.poll() is not None:
            break
        time.sleep(0.05)
    from studio.runs.outcome import tail

    lines = tail(log, 4096).strip().splitlines()
    raise StudioError("worker", f"did not start ({lines[-1] if lines else 'it said nothing'})", f"see {log}")


def serve(ws: "Workspace", parent: ProcessIdentity | None) -> None:
    """Be the worker until `parent` is gone and the queue is empty."""
    from studio.runs.worker import Worker

    def idle() -> bool:
        if parent is not None and parent.alive():
            return False
        return ws.catalog.count(Job, state=(JobState.QUEUED, JobState.LEASED)) == 0

    def say(line: str) -> None:
        sys.stdout.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        sys.stdout.flush()

    while not idle():
        try:
            Worker(ws, say=say).run(until=idle)
        except WorkspaceBusy:  # a command line does a job of its own; we are needed again after it
            time.sleep(RETRY)


def main() -> int:
    """Entry point of the detached process."""
    from studio.workspace import Workspace

    home, pid = sys.argv[1:]
    try:
        serve(Workspace.open(Path(home)), ProcessIdentity.of(int(pid)))
    except StudioError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
