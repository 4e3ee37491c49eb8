"""The server without a worker, so that a workspace with made-up runs stays as it is: HOME PORT."""

import sys
from pathlib import Path

from studio.app import state
from studio.app.server import make_app, options
from studio.workspace import Workspace

if __name__ == "__main__":
    state.use(Workspace.open(Path(sys.argv[1])))
    make_app().run(config=options(int(sys.argv[2]), "127.0.0.1"))
