"""The data set doctor: what it finds of planted faults, and how long it takes.

    python -m benchmarks.doctor [--planted 1200] [--seed 11] [--json]     precision and recall of each fault
    python -m benchmarks.doctor --pictures 10000 [--side 1024] [--json]  seconds and memory

The second writes that many different JPEGs first (drawn from a few hundred, each with noise of its own).
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image as Pixels

from registry.records import Base, Dataset, Image
from studio.datasets.doctor import check_dataset
from studio.datasets.examine import examine
from studio.datasets.ingest import images_of
from studio.workspace import Workspace
from tests.support.painted import KINDS, painted
from tests.support.planted import FAULTS, Planted, enter, plant
from trainers.recipe import apply_sets, preset

PAINTED = 160  # different motifs among the many


def found_of(ws: Workspace, dataset: Dataset, resolution: int) -> dict[str, set[str]]:
    """Code of a finding -> names of its pictures."""
    base = ws.catalog.get(Base, "pocket")
    recipe = apply_sets(preset("sd15", "style", "pocket"), [f"train.resolution={resolution}"])
    names = {image.id: image.name for image in images_of(ws, dataset)}
    findings = check_dataset(ws, dataset, recipe, base)
    return {finding.code: {names[key] for key in finding.images} for finding in findings}


def score(made: Planted, found: dict[str, set[str]]) -> dict[str, dict[str, Any]]:
    """Precision and recall of each fault; of a pair of copies either may be named."""
    back = {name: twin for twin, name in made.twins.items()}
    table: dict[str, dict[str, Any]] = {}
    for code in FAULTS:
        truth = made.faults[code]
        named = {
            back.get(name, name) if code.endswith("duplicates") else name for name in found.get(code, ())
        }
        right = len(truth & named)
        table[code] = {
            "planted": len(truth),
            "found": len(named),
            "precision": round(right / len(named), 3) if named else 0.0,
            "recall": round(right / len(truth), 3) if truth else 0.0,
            "false": sorted(named - truth)[:8],
            "missed": sorted(truth - named)[:8],
        }
    return table


def planted(count: int, seed: int) -> dict[str, Any]:
    """A planted set of about `count` pictures, judged at 512 px."""
    with tempfile.TemporaryDirectory() as folder:
        ws = Workspace.open(Path(folder))
        made = plant(count, seed)
        dataset = enter(ws, made)
        images = images_of(ws, dataset)
        examine(ws, images)
        return {"pictures": len(images), "seed": seed, "faults": score(made, found_of(ws, dataset, 512))}


def many(count: int, side: int) -> dict[str, Any]:
    """Time and memory of looking at `count` pictures for the first time, the second, and after one more."""
    with tempfile.TemporaryDirectory() as folder:
        ws = Workspace.open(Path(folder))
        dataset = _write_many(ws, count, side)
        images = images_of(ws, dataset)
        command = [sys.executable, "-m", "benchmarks.doctor", "--look", folder, dataset.id]
        first, second = _watched(command), _watched(command)
        ws.catalog.replace_images(dataset.id, images[:-1])
        examine(ws, images[:-1])
        ws.catalog.replace_images(dataset.id, images)
        (ws.home / "cache" / "examined").rename(ws.home / "cache" / "examined before")
        return {
            "pictures": count,
            "side": side,
            "first": first,
            "again": second,
            "one_more": _watched(command),
        }


def _watched(command: list[str]) -> dict[str, float]:
    """Seconds, CPU seconds and the most memory of a command and its children together."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started, most, ended = time.perf_counter(), [0], threading.Event()
    process = psutil.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)

    def watch() -> None:
        while not ended.wait(0.1):
            total = 0
            try:
                for one in (process, *process.children(recursive=True)):
                    total += one.memory_info().rss
            except psutil.Error:
                continue
            most[0] = max(most[0], total)

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    ended.set()
    watcher.join()
    if code:
        raise SystemExit(f"error: the look ended with {code}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    seconds = time.perf_counter() - started
    return {"seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1), "megabytes": round(most[0] / 1e6)}


def _write_many(ws: Workspace, count: int, side: int) -> Dataset:
    rng, noise = random.Random(1), np.random.default_rng(1)
    motifs = [painted(KINDS[k % len(KINDS)], rng, (side, side)) for k in range(min(PAINTED, count))]
    images: list[Image] = []
    for number in range(count):
        motif = motifs[number % len(motifs)]
        turned = motif.rotate(90 * (number // len(motifs) % 4))
        shift = noise.integers(-90, 90, 3)
        values = np.clip(np.asarray(turned, np.int16)[:, :: -1 if number % 7 == 0 else 1] + shift, 0, 255)
        box = (number % 61, number % 53, side, side)
        buffer = BytesIO()
        picture = Pixels.fromarray(values.astype(np.uint8)).crop(box).resize((side, side))
        picture.save(buffer, "JPEG", quality=90)
        blob = ws.blobs.put(buffer.getvalue())
        images.append(
            Image(blob=blob, pixel_hash=blob, name=f"{number}.jpg", width=side, height=side, caption="a wall")
        )
    return ws.catalog.add_dataset(Dataset(name="many", trigger="zibbo"), images)


def look(folder: str, dataset_id: str) -> None:
    """What is measured: one examination and the findings."""
    ws = Workspace.open(Path(folder))
    dataset = ws.catalog.get(Dataset, dataset_id)
    examine(ws, images_of(ws, dataset))
    found_of(ws, dataset, 512)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--planted", type=int, default=1200)  # 72 of each fault: one picture is .014
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--pictures", type=int, default=0)
    parser.add_argument("--side", type=int, default=1024, help="pixels")
    parser.add_argument("--look", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.look:
        look(*options.look)
        return
    if options.pictures:
        figures = many(options.pictures, options.side)
        print(json.dumps(figures, indent=None if options.json else 1))
        return
    figures = planted(options.planted, options.seed)
    if options.json:
        print(json.dumps(figures))
        return
    print(f"{figures['pictures']} pictures, seed {figures['seed']}")
    for code, row in figures["faults"].items():
        told = f"false {row['false']} missed {row['missed']}" if row["false"] or row["missed"] else ""
        print(
            f"{code:20} planted {row['planted']:3} precision {row['precision']:.3f} "
            f"recall {row['recall']:.3f} {told}"
        )


if __name__ == "__main__":
    main()
