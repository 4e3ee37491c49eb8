"""Taking adapters in at real size: headers a second, megabytes hashed a second, and a restart in between.

    python -m benchmarks.imports [--files 200] [--size 100] [--folder DIR] [--full] [--json]

Sparse files hold one page of data each: they measure what hashing costs. With --full the disk is measured.
`listed_per_s` and `listing_cpu_ms` (a file, helpers included) are of the listing alone; --listing ends there.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from registry.records import Adapter, Job, JobState
from studio.imports.describers import Describers
from studio.imports.journal import Journal
from studio.imports.listing import Lister, Wishes
from studio.imports.report import ImportReport
from studio.imports.scan import find_files
from studio.imports.submit import submit
from studio.imports.task import keep_memory
from studio.workspace import Workspace
from tests.support.imports import sparse_adapter

ROOT = Path(__file__).parents[1]
MODULES = 722  # of an SDXL adapter on the attention layers


def make_files(folder: Path, count: int, size: int, *, full: bool) -> None:
    """`count` files of `size` bytes."""
    for number in range(count):
        file = sparse_adapter(folder / f"{number:04}.safetensors", size, number, modules=MODULES)
        if full:
            finite = bytes(b & 0xBB if b & 0x7C == 0x7C else b for b in range(256))
            noise = random.Random(number).randbytes(1 << 20).translate(finite)
            with file.open("r+b") as stream:
                stream.seek(1 << 20)
                while stream.tell() + len(noise) < file.stat().st_size:
                    stream.write(noise)


def child(ws: Workspace, job: Job) -> subprocess.Popen[bytes]:
    """The import's process, as the worker starts it."""
    command = [sys.executable, "-m", "studio.imports.task", str(ws.home), job.id]
    return subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )


def hashed(ws: Workspace) -> dict[str, Any]:
    """Name -> when it was hashed."""
    return {a.name: a.checked_at for a in ws.catalog.list(Adapter) if a.tensor_sha256}


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def listing(folder: Path) -> dict[str, Any]:
    """The first half of an import alone: rows from headers."""
    keep_memory()
    ws = Workspace.open(folder / "home 3")
    ws.catalog.count(Adapter)  # its tables are made once in the life of a workspace, not by each import
    report, started, cpu = ImportReport(), time.perf_counter(), cpu_seconds()
    with Describers((), "") as describers:
        lister = Lister(ws, Wishes(""), Journal(ws.home / "cache"), report, describers)
        files = sum(len(part) for part in lister.list_all(find_files([folder / "in"])))
    took, cpu = time.perf_counter() - started, cpu_seconds() - cpu
    return {"listed_per_s": round(files / took, 1), "listing_cpu_ms": round(1000 * cpu / files, 1)}


def measure(folder: Path, count: int, size: int, *, full: bool) -> dict[str, Any]:
    """Import, killed when half is done, and once more to the end; files are in the folder."""
    ws = Workspace.open(folder / "home")
    job = submit(ws, [folder / "in"])
    process = child(ws, job)
    while len(hashed(ws)) < count // 2 and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    process.wait()
    before = hashed(ws)
    child(ws, job).wait()
    after = hashed(ws)
    path = ws.home / "cache" / "imports" / f"{job.id}.json"
    second = ImportReport.of(json.loads(path.read_text()))
    ws.catalog.finish_job(job.id, JobState.DONE)
    fresh = Workspace.open(folder / "home 2")
    job = submit(fresh, [folder / "in"])
    child(fresh, job).wait()
    whole = ImportReport.of(json.loads((fresh.home / "cache" / "imports" / f"{job.id}.json").read_text()))
    return {
        "files": count,
        "megabytes": round(size / 1e6),
        "sparse": not full,
        "hashed_mb_per_s": round(whole.bytes_done / 1e6 / whole.hashing_seconds, 1),
        "finished_before_the_kill": len(before),
        "hashed_again": sum(after[name] != at for name, at in before.items()),
        "hashed_after_it": round(second.bytes_done / size),
        "rows": len(after),
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--size", type=int, default=100, help="MB each")
    parser.add_argument("--folder", type=Path, help="on the disk to measure")
    parser.add_argument("--full", action="store_true", help="write real data: files times size on the disk")
    parser.add_argument("--listing", action="store_true", help="headers only")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        size = options.size * 10**6
        make_files(Path(folder) / "in", options.files, size, full=options.full)
        figures = listing(Path(folder))
        if not options.listing:
            figures |= measure(Path(folder), options.files, size, full=options.full)
    if options.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:26} {value}")


if __name__ == "__main__":
    main()
