"""A worker on fake trainers: `python -m tests.support.worker_main HOME [--once]`."""

import sys
from pathlib import Path

from studio.workspace import Workspace
from tests.support.supervision import make_worker


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        worker = make_worker(Workspace.open(Path(sys.argv[1])), say=say)
        worker.run(once="--once" in sys.argv)
    except KeyboardInterrupt:
        sys.exit(130)
