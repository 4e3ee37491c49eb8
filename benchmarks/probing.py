"""What judging checkpoints costs: CPU seconds of the probe within a run of the pocket style recipe.

One run in this process, on one thread, with more checkpoints than anyone wants; the calls of the probe are
timed inside of it, so a machine that is busy or slow is so for both. The first one also asks the base.

    python -m benchmarks.probing [--steps 100] [--every 10] [--held-out 4]
"""

import argparse
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median

from studio.pocket.check import MODEL
from studio.pocket.pictures import demo_set
from tests.support.runs import environment, write_run
from trainers.recipe import apply_sets, preset_by_name
from trainers.rundir import ManifestItem

PICTURES = 40


def pictures(folder: Path) -> list[ManifestItem]:
    """The demo's own, as a manifest."""
    folder.mkdir()
    items: list[ManifestItem] = []
    for number, (picture, caption) in enumerate(demo_set("style", PICTURES, 1)):
        path = folder / f"{number}.png"
        picture.save(path)
        digest = hashlib.sha256(picture.tobytes()).hexdigest()
        items.append(ManifestItem(image=str(path), pixel_hash=digest, width=64, height=64, caption=caption))
    return items


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--held-out", type=int, default=4)
    options = parser.parse_args()
    os.environ.update(environment())

    from trainers.loop import train
    from trainers.metrics import Reporter
    from trainers.probe import Probe
    from trainers.session import open_session
    from trainers.signals import StopFlag

    ask, calls = Probe.__call__, list[float]()

    def timed(probe: Probe) -> object:
        before = time.process_time()
        found = ask(probe)
        calls.append(time.process_time() - before)
        return found

    Probe.__call__ = timed
    usual = preset_by_name("pocket-style")
    sets = [
        f"train.max_steps={options.steps}", "train.num_threads=1", "preview.every=0", "data.trigger=zork",
        f"checkpoints.every={options.every}", f"checkpoints.held_out={options.held_out}",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        run = write_run(Path(name) / "run", MODEL, pictures(Path(name) / "pictures"))
        run.file("recipe.json").write_text(apply_sets(usual, sets).model_dump_json())
        session = open_session(run, Reporter(run), StopFlag())
        before = time.process_time()
        train(session)
        step = (time.process_time() - before - sum(calls)) / options.steps
        session.close()
        found = [line for line in run.read_metrics() if "probe_loss" in line]
    probe, every = median(calls), usual.checkpoints.every
    print(f"a step {step * 1e3:.0f} ms, a probe {probe * 1e3:.0f} ms, the first {calls[0] * 1e3:.0f} ms CPU")
    print(f"with a checkpoint every {every} steps: {probe / (every * step):.2%} of the training")
    keys = ("step", "probe_loss", "probe_held_out", "probe_prior")
    print(json.dumps([[line.get(key) for key in keys] for line in found]))


if __name__ == "__main__":
    main()
