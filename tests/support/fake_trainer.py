"""A trainer without a model: keeps the contract of a run directory, obeys signals, fails when told to.

`python -m tests.support.fake_trainer DIR`; what it shall do is in `DIR/fake.json` (see `Script`). Used to
inject faults into supervision, where a real model would only cost time.
"""

import json
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from registry.files import append_line, atomic_folder, read_json, write_json
from trainers.rundir import (
    ADAPTER,
    CHECKPOINTS,
    HEARTBEAT,
    KEY_VARIABLE,
    MEMORY,
    METRICS,
    PROBES,
    RECIPE,
    UNTRIED,
    RunDir,
    Status,
    checkpoint_name,
    checkpoint_step,
    write_manifest,
)

SCRIPT = "fake.json"
MODULE = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
STARTS = "starts.txt"  # one line a start: proof that nothing was started twice


@dataclass(frozen=True)
class Script:
    """What goes wrong, and when."""

    step_seconds: float = 0.01
    at: int = 5  # step of the fault
    fault: str = (
        ""  # "nan", "hang", "137", "oom", "crash", "die-at-start", "deaf", "bad-adapter", "no-adapter"
    )
    rungs: int = 0  # starts at which memory ends before the first step
    top: bool = False  # they keep the savings they had, and find no more
    probes: bool = False  # figures of a probe that is best at step 10


class Stop:
    """Counts signals; the second one ends the process at once."""

    def __init__(self, deaf: bool) -> None:
        self.asked, self._deaf = 0, deaf
        signal.signal(signal.SIGTERM, self.ask)
        signal.signal(signal.SIGINT, self.ask)

    def ask(self, *_: Any) -> None:
        self.asked += 1
        if self.asked > 1 and not self._deaf:
            os._exit(1)


def beat(rundir: RunDir, stopped: threading.Event) -> None:
    while not stopped.is_set():
        rundir.file(HEARTBEAT).touch()
        stopped.wait(0.1)


def weights(step: int, value: float | None = None) -> dict[str, np.ndarray]:
    """Factors of one module, different at every step."""
    down = np.full((2, 96), step / 1000 if value is None else value, np.float32)
    return {f"{MODULE}.lora_A.weight": down, f"{MODULE}.lora_B.weight": np.ones((96, 2), np.float32)}


def save_checkpoint(rundir: RunDir, step: int, loss: float, found: dict[str, float] | None = None) -> None:
    with atomic_folder(rundir.path / CHECKPOINTS / checkpoint_name(step)) as folder:
        save_file(weights(step), folder / ADAPTER)
        write_json(folder / "state.json", {"step": step, "loss": loss} | (found or {}))
        write_manifest(folder, step, bytes.fromhex(os.environ[KEY_VARIABLE]))


def probed(step: int) -> dict[str, float]:
    """What a probe would find; step 10 is best."""
    figures = (1 / step, 0.5 + abs(step - 10) / 100, step / 1000)
    return dict(zip(PROBES.values(), figures, strict=True))


def misbehave(rundir: RunDir, script: Script, step: int, stopped: threading.Event) -> None:
    if script.fault == "hang":
        stopped.set()  # the heartbeat stops with it
        time.sleep(3600)
    elif script.fault == "137":
        os._exit(137)
    elif script.fault == "oom":
        sys.stderr.write("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n")
        os._exit(1)
    elif script.fault == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif script.fault == "nan":
        reason = f"step {step}: the loss is not finite; the batch was a.png."
        rundir.write_status(Status(state="failed", kind="nan", reason=reason, step=step, time=time.time()))
        os._exit(3)


def main(folder: Path) -> int:
    rundir = RunDir(folder)
    path = folder / SCRIPT
    script = Script(**(json.loads(path.read_text()) if path.exists() else {}))
    with (folder / STARTS).open("a") as starts:
        starts.write(f"{os.getpid()}\n")
    memory = rundir.file(MEMORY)
    taken = read_json(memory)["pieces"] if memory.exists() else 0
    if taken < script.rungs:
        write_json(memory, {"pieces": taken + 1} | ({} if script.top else {UNTRIED: True}))
        sys.stderr.write("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n")
        return 4
    if script.fault == "die-at-start":
        sys.stderr.write("ImportError: libfoo.so.1: cannot open shared object file\n")
        return 1
    stop, stopped = Stop(script.fault == "deaf"), threading.Event()
    while os.environ.get("RANK", "0") != "0" and not stop.asked:
        time.sleep(0.01)  # only the first of several ranks writes
    if os.environ.get("RANK", "0") != "0":
        return 0
    threading.Thread(target=beat, args=(rundir, stopped), daemon=True).start()
    recipe = read_json(folder / RECIPE)
    steps, every = recipe["train"]["max_steps"], recipe["checkpoints"]["every"]
    saved = [checkpoint_step(p) for p in rundir.checkpoints()] if rundir.read_env().resume else []
    step = begun = max(saved, default=0)
    rundir.write_status(Status(state="running", phase="loading", step=step, steps=steps, time=time.time()))
    while step < steps and (not stop.asked or script.fault == "deaf"):
        step += 1
        time.sleep(script.step_seconds)
        if step == script.at:
            misbehave(rundir, script, step, stopped)
        found = probed(step) if script.probes and step % every == 0 else {}
        append_line(rundir.file(METRICS), {"step": step, "loss": 1 / step} | found)
        if step % every == 0:
            save_checkpoint(rundir, step, 1 / step, found)
        rundir.write_status(Status(
            state="running", phase="training", step=step, steps=steps, begun=begun, loss=1 / step,
            seconds_per_step=script.step_seconds, peak_memory=1 << 20, time=time.time(),
        ))  # fmt: skip
    if step % every:
        save_checkpoint(rundir, step, 1 / step)
    state = "finished" if step == steps else "stopped"
    if state == "finished" and script.fault != "no-adapter":
        save_file(weights(step, np.nan if script.fault == "bad-adapter" else None), rundir.adapter)
    rundir.write_status(Status(
        state=state, step=step, steps=steps, begun=begun, seconds_per_step=script.step_seconds,
        peak_memory=1 << 20, time=time.time(),
    ))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
