"""Every benchmark, one after the other: what each printed as JSON, with the conditions, in one file.

    python -m benchmarks.everything [--out build/benchmarks.json] [--small] [--only NAME ...]

--small takes minutes and says whether everything runs; its figures are rough. The file is written after each
benchmark; one that fails is noted there with its last words, and the others go on. Exit code 1 if one did.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from registry.files import write_json
from studio.runs.device import has_gpu

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "streamlit", "sqlalchemy")
LAST_WORDS = 1500  # characters


@dataclass(frozen=True)
class Bench:
    """A module of this package and its options.

    Args:
        module: Its name; what it prints is one JSON document, or lines of which some are.
        words: Options, as the figures of docs/benchmarks.md were taken.
        small: The same in small.
    """

    module: str
    words: str
    small: str


BENCHES = (
    Bench("light", "", ""),
    Bench("train_vs_plain", "--json", "--json --short 4 --long 110"),
    Bench("start", "--json", "--json --rounds 1"),
    Bench("style_closed", "", "--seeds 1 --no-control --set train.max_steps=30"),
    Bench("learning", "", "--set train.max_steps=20"),
    Bench("probing", "", "--steps 20"),
    Bench("forecast", "--json", "--json --steps 8 --only 96"),
    Bench("true_size", "" if has_gpu() else "--toy", "--toy"),
    Bench("sampling_vs_plain", "--json", "--json --rounds 1 --steps 8"),
    Bench("adapter_switch", "--json --cpu-time", "--json --rounds 1 --rank 4"),
    Bench("operations", "--json", "--json --rank 4 --every 40"),
    Bench("imports", "--json", "--json --files 20 --size 1"),
    Bench("catalog", "--json", "--json --adapters 2000"),
    Bench("doctor", "--json --planted 1200", "--json --planted 60"),
    Bench("evidence", "--json", "--json --seeds 1 --kind style"),
)


def figures_of(printed: str) -> Any:
    """The one document, or those lines that are documents.

    Raises:
        ValueError: there is none.
    """
    try:
        return json.loads(printed)
    except ValueError:
        found: list[Any] = []
        for line in printed.splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        if not found:
            raise ValueError("it printed no figures") from None
        return found


def measure(bench: Bench, *, small: bool) -> dict[str, Any]:
    """Run it; its figures, or how it failed."""
    words = (bench.small if small else bench.words).split()
    command = ["-m", f"benchmarks.{bench.module}", *words]
    load, started = os.getloadavg()[0], time.monotonic()
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    row: dict[str, Any] = {
        "name": bench.module, "command": " ".join(["python", *command]),
        "load_before": round(load, 2), "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip
    try:
        if done.returncode:
            raise ValueError(f"it ended with {done.returncode}")
        return row | {"figures": figures_of(done.stdout)}
    except ValueError as error:
        return row | {"failed": f"{error}\n{(done.stdout + done.stderr)[-LAST_WORDS:]}"}


def conditions(*, small: bool) -> dict[str, Any]:
    """Of all of them."""
    processor = platform.processor() or platform.machine()
    if (facts := Path("/proc/cpuinfo")).is_file():
        names = [line for line in facts.read_text(encoding="utf-8").splitlines() if "model name" in line]
        processor = names[0].partition(":")[2].strip() if names else processor
    return {
        "small": small, "processor": processor, "cores": os.cpu_count(), "gpu": has_gpu(),
        "system": platform.platform(), "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
    }  # fmt: skip


def main() -> int:
    """Measure, write, say."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [bench.module for bench in BENCHES]
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks.json"))
    parser.add_argument("--small", action="store_true", help="rough figures in minutes")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for bench in BENCHES:
        if bench.module in options.only:
            rows.append(measure(bench, small=options.small))
            write_json(options.out, {"conditions": conditions(small=options.small), "results": rows})
            print(json.dumps(rows[-1]), flush=True)
    failed = [row["name"] for row in rows if "failed" in row]
    print(f"{options.out}: {len(rows)} benchmarks" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
