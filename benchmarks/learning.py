"""What the pocket base learns of the demo's three sets, and what it forgets, by the shipped recipes.

For each kind the share of the distance to the training pictures that the adapter closes (see
studio/compare/style.py); then how far pictures of other things move from the base's, without and with
preservation by the base's own prediction.

    python -m benchmarks.learning [--set train.max_steps=400]
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from studio.workspace import Workspace
from tests.support.learning import KINDS, demo_dataset, drift, learn, likeness

KEEP = "preservation.mode=base_prediction"


def main() -> int:
    """Train, draw, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE")
    sets = parser.parse_args().sets
    with tempfile.TemporaryDirectory() as home:
        ws = Workspace.open(Path(home))
        for kind in KINDS:
            dataset = demo_dataset(ws, kind)
            for kept in (False, True) if kind == "character" else (False,):
                adapter = learn(ws, dataset, kind, *sets, *([KEEP] if kept else []))
                figures = likeness(ws, dataset, adapter, kind)
                line = {
                    "kind": kind,
                    "preservation": kept,
                    "base": round(figures.base.total, 3),
                    "adapter": round(figures.adapter.total, 3),
                    "floor": round(figures.floor.total, 3),
                    "closed": round(figures.closed, 3),
                    "drift": round(drift(ws, adapter)[0], 3),
                }
                print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
