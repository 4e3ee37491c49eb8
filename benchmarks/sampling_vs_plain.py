"""Drawing on the pocket base: the warm sampler against a plain diffusers loop, in one run, in turn.

    python -m benchmarks.sampling_vs_plain [--rounds 5] [--count 4] [--steps 25] [--json]

Both draw the same pictures (tests/unit/sampling/test_pipelines.py): ours through the sampler process as a
request does, with progress, previews and files; plain with the pipeline's own call in a process of its own,
which writes its files too: in a loop, picture by picture as ours, and all as one batch, which is quicker but
changes single pixels with what else is in it. ratio = ours / loop, ratio_batch = ours / batch, of medians of
wall seconds. first_preview_s: from the request to the first preview of a warm sampler.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Self

from registry.records import Base
from studio.sampling.request import SampleRequest
from studio.sampling.task import PREVIEW, SampleTask, TaskBase
from studio.workspace import POCKET, Workspace

PROMPT, SIDE, CFG, SAMPLER = "a large yellow star on a blue background", 64, 2.0, "DDIM"
PLAIN = """
import json, sys, torch
from pathlib import Path
from diffusers import DDIMScheduler, StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1], local_files_only=True).to(torch.float32)
pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
pipe.set_progress_bar_config(disable=True)
for line in sys.stdin:
    said = json.loads(line)
    for first in range(0, said["count"], said["batch"]):
        seeds = [torch.Generator().manual_seed(said["seed"] + first + i) for i in range(said["batch"])]
        pictures = pipe(
            said["prompt"], num_images_per_prompt=said["batch"], num_inference_steps=said["steps"],
            guidance_scale=said["cfg"], height=said["side"], width=said["side"], generator=seeds,
        ).images
        for index, picture in enumerate(pictures, first):
            picture.save(Path(said["folder"]) / f"{index:03}.png")
    print("done", flush=True)
"""


class Child:
    """A process that takes a line and answers a line."""

    def __init__(self, *command: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.kill()
        self._process.wait()

    def send(self, value: dict[str, Any]) -> None:
        """One line of JSON."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(value) + "\n")
        self._process.stdin.flush()

    def answer(self) -> str:
        """The next line."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process ended"
        return line


class Ours(Child):
    """The sampler process."""

    def __init__(self, ws: Workspace, base: Base) -> None:
        super().__init__("-m", "studio.sampling.server")
        location = str(ws.resolve(base.location))
        self._base = TaskBase(
            id=base.id, name=base.name, family=base.family, location=location, kind=base.kind
        )

    def start(self, said: dict[str, Any]) -> None:
        """Send a request."""
        request = SampleRequest(
            base=self._base.id, prompt=said["prompt"], width=SIDE, height=SIDE, steps=said["steps"],
            cfg=said["cfg"], seed=said["seed"], count=said["count"], scheduler=SAMPLER,
        )  # fmt: skip
        task = SampleTask(id="bench", request=request, base=self._base)
        self.send({"do": "sample", "task": task.to_json(), "folder": said["folder"]})

    def draw(self, said: dict[str, Any]) -> None:
        """Send it and wait."""
        self.start(said)
        while (event := json.loads(self.answer()))["event"] not in {"done", "failed"}:
            pass
        assert event["event"] == "done", event


class Plain(Child):
    """The pipeline."""

    def __init__(self, ws: Workspace, base: Base) -> None:
        super().__init__("-c", PLAIN, str(ws.resolve(base.location)))

    def draw(self, said: dict[str, Any]) -> None:
        """Send it and wait."""
        self.send(said)
        self.answer()


def seconds(child: Ours | Plain, said: dict[str, Any]) -> float:
    """Wall seconds of one request."""
    start = time.perf_counter()
    child.draw(said)
    return time.perf_counter() - start


def first_preview(ours: Ours, said: dict[str, Any]) -> float:
    """Wall seconds from a request to its first preview."""
    folder = Path(said["folder"])
    (folder / PREVIEW).unlink(missing_ok=True)
    start = time.perf_counter()
    ours.start(said | {"steps": 200})
    while not (folder / PREVIEW).exists():
        assert time.perf_counter() - start < 60
        time.sleep(0.005)
    return time.perf_counter() - start


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp())
    ws = Workspace.open(home)
    base = ws.catalog.get(Base, POCKET)
    folder = home / "pictures"
    folder.mkdir()
    said = {"prompt": PROMPT, "cfg": CFG, "side": SIDE, "seed": 7, "folder": str(folder)}
    said |= {"count": options.count, "steps": options.steps, "batch": 1}
    batch = said | {"batch": options.count}
    try:
        with Ours(ws, base) as ours, Plain(ws, base) as plain:
            for child in (ours, plain):
                child.draw(said)  # loads
            rounds = [
                (seconds(ours, said), seconds(plain, said), seconds(plain, batch))
                for _ in range(options.rounds)
            ]
            mine, loop, at_once = (statistics.median(column) for column in zip(*rounds, strict=True))
            figures = {
                "ours_s": round(mine, 3),
                "loop_s": round(loop, 3),
                "batch_s": round(at_once, 3),
                "ratio": round(mine / loop, 3),
                "ratio_batch": round(mine / at_once, 3),
                "first_preview_s": round(first_preview(ours, said), 3),
            }
    finally:
        ws.catalog.close()
        shutil.rmtree(home, ignore_errors=True)
    if options.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:16} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
