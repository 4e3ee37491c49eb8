"""`python -m trainers.standby ROOM`: a trainer that is ready before there is a run for it.

Its standard input is a socket. There it gets a directory of a run like the ones to come, loads what such a
trainer needs (no model, nothing on a GPU), says so and waits; then it gets a run, the lock and the log of
that, and goes on as `python -m trainers.run DIR`. It ends when the other side of the socket is gone.

ROOM only takes up room: the command line of the run has to fit into this one's.
"""

import ctypes
import json
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from PIL import Image

from trainers import run
from trainers.garbage import seldom_collecting
from trainers.recipe import Recipe, load_frozen
from trainers.rundir import READY, RECIPE, TAKEN

ARGUMENTS, ENVIRONMENT = 45, 47  # fields of /proc/self/stat behind the name: where they begin, see proc(5)
LINE = 1 << 16  # bytes of a message at most
# What a trainer loads only when it comes to it.
LATER = (
    "accelerate.tracking",
    "torch._dynamo",  # by every optimizer
    "torch.utils.tensorboard",
    "trainers.guards",
    "trainers.loop",
    "trainers.session",
)


def main() -> int:
    """Load, wait, become the trainer; returns its exit code, 0 without a run."""
    with socket.socket(fileno=os.dup(0)) as control:
        like, _ = _next(control)
        if not like:
            return 0
        spared = load(load_frozen(Path(like) / RECIPE))
        control.sendall(READY)
        folder, files = _next(control)
        if not folder or len(files) != 2 or not _fits(Path(folder), spared):
            return 0
        if not show(ARGUMENTS, [sys.executable, "-m", run.__name__, folder]) and sys.platform == "linux":
            return 0
        _write_into(files[1])  # the lock is only held
        control.sendall(TAKEN)
    sys.argv = [run.__file__, folder]
    return run.main([folder])


def load(recipe: Recipe) -> bool:
    """Import what a trainer of this recipe needs; returns whether it does without bitsandbytes."""
    from trainers.families import FAMILIES

    with seldom_collecting():
        spared = run.spare_bitsandbytes(recipe)
        for module in LATER:
            with suppress(ImportError):  # TensorBoard may not be installed
                import_module(module)
        for part in FAMILIES[recipe.family].load_class().parts.values():
            part.load_class()
        if recipe.preview.every:
            from diffusers.schedulers.scheduling_ddim import DDIMScheduler

            DDIMScheduler.from_config({})  # looks for all that are like it
        Image.preinit()
    return spared


def show(field: int, texts: Sequence[str]) -> bool:
    """Let the system say of this process that it has these arguments, or this environment.

    Trainers are found by their command line. Nothing else reads that memory once Python has started.

    Args:
        field: `ARGUMENTS` or `ENVIRONMENT`.
        texts: In their order.

    Returns:
        False where there is not enough room, or the system does not work like that; nothing is changed then.
    """
    try:
        fields = (
            Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
    except OSError:
        return False
    place, size = int(fields[field]), int(fields[field + 1]) - int(fields[field])
    content = "".join(f"{text}\0" for text in texts).encode(errors="surrogateescape")
    if not place or len(content) > size:
        return False
    ctypes.memmove(place, content.ljust(size, b"\0"), size)
    return True


def _fits(folder: Path, spared: bool) -> bool:
    """Whether this process is as the run's own one would be: what was hidden stays hidden."""
    return run.spares_bitsandbytes(load_frozen(folder / RECIPE)) == spared


def _next(control: socket.socket) -> tuple[str, list[int]]:
    """The next directory, and the descriptors that came with it; "" when the other side is gone."""
    line, files, _, _ = socket.recv_fds(control, LINE, 2)
    while line and not line.endswith(b"\n"):
        more = control.recv(LINE)
        line = line + more if more else b""
    return (json.loads(line) if line else ""), files


def _write_into(log: int) -> None:
    """Standard output and errors go to the log from now on; there is nothing to read."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        for target in {number, stream.fileno()}:
            os.dup2(log, target)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)


if __name__ == "__main__":
    sys.exit(main())
