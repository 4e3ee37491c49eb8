"""What judging checkpoints costs: the pocket style recipe with and without the probe, in turn (A B B A).

Each run is a fresh process with one thread. There is a checkpoint every 25 steps, more than anyone wants, so
that the difference stands out; without the probe they are saved all the same. What a checkpoint's probe costs
is said in steps, and as a share of a run with the recipe's own number of checkpoints.

    python benchmarks/probing.py [--rounds 1] [--steps 400] [--held-out 4]
"""

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import train_vs_plain as runs  # noqa: E402 - a script: the path comes first
from studio.pocket.pictures import demo_set  # noqa: E402
from trainers.recipe import preset_by_name  # noqa: E402
from trainers.rundir import ManifestItem  # noqa: E402

EVERY = 25  # steps between checkpoints


def pictures(folder: Path, count: int) -> list[ManifestItem]:
    """The demo's own, as a manifest."""
    folder.mkdir()
    items: list[ManifestItem] = []
    for number, (picture, caption) in enumerate(demo_set("style", count, 1)):
        path = folder / f"{number}.png"
        picture.save(path)
        digest = hashlib.sha256(picture.tobytes()).hexdigest()
        items.append(ManifestItem(image=str(path), pixel_hash=digest, width=64, height=64, caption=caption))
    return items


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--held-out", type=int, default=4)
    options = parser.parse_args()
    same = [f"checkpoints.every={EVERY}", f"checkpoints.held_out={options.held_out}", "train.ema_decay=0.99"]
    ways = {"without": ["checkpoints.keep_best=false"], "with": ["checkpoints.keep_best=true"]}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as name:
        shown = pictures(Path(name) / "pictures", 40)
        for _ in range(options.rounds):
            for way in ("with", "without", "without", "with"):
                cpu, wall = runs.measure("ours", options.steps, Path(name), shown, [*same, *ways[way]])
                seconds[way].append(cpu)
                print(f"{way:8s} cpu {cpu:6.2f} s, wall {wall:6.2f} s")
    plain, judged = median(seconds["without"]), median(seconds["with"])
    probe = (judged - plain) / (options.steps // EVERY)
    usual = preset_by_name("pocket-style").checkpoints.every
    share = probe * (options.steps // usual) / plain
    print(f"a probe: {probe * 1e3:.0f} ms CPU; with a checkpoint every {usual} steps {share:.1%} of the run")
    print(json.dumps({"probe_ms": round(probe * 1e3), "share": round(share, 4)}))


if __name__ == "__main__":
    main()
