"""Which checkpoint folders of a run can be trusted: complete, unchanged, and signed by this workspace."""

from dataclasses import dataclass
from functools import lru_cache
from math import isfinite
from pathlib import Path

from registry.errors import Damaged
from registry.files import read_json
from registry.hashing import sha256_file
from trainers.rundir import ADAPTER, PROBES, RunDir, checkpoint_step, verify_checkpoint

MANIFEST = "manifest.json"
STATE = "state.json"
NUMBERS = ("loss", *PROBES.values())
REMEMBERED = 4096  # files


@dataclass(frozen=True)
class Verified:
    """A checkpoint folder that verified."""

    folder: Path
    stamp: int  # mtime of its manifest, ns: another one of the same step is another checkpoint
    numbers: dict[str, float]  # "loss" (smoothed) and those of PROBES, as far as they are known

    @property
    def adapter(self) -> Path:
        """Its adapter file."""
        return self.folder / ADAPTER


def verified(folder: Path, key: bytes) -> bool:
    """`verify_checkpoint` for who looks, and does not resume.

    A file of the same size, time and inode as when this process last read it is not read again.
    """
    return verify_checkpoint(folder, key, _sha256)


def verified_checkpoints(rundir: RunDir, key: bytes, known: dict[int, Verified]) -> dict[int, Verified]:
    """Step -> checkpoint, oldest first; folders in `known` that did not change are not hashed again."""
    found: dict[int, Verified] = {}
    for folder in rundir.checkpoints():
        try:
            step, stamp = checkpoint_step(folder), (folder / MANIFEST).stat().st_mtime_ns
        except (ValueError, FileNotFoundError):
            continue  # not ours, or pruned under our eyes
        before = known.get(step)
        if before is not None and before.stamp == stamp:
            found[step] = before
        elif verified(folder, key):
            found[step] = Verified(folder, stamp, _numbers(folder))
    return dict(sorted(found.items()))


def _sha256(file: Path) -> str:
    status = file.stat()
    return _read(file, status.st_size, status.st_mtime_ns, status.st_ino)


@lru_cache(REMEMBERED)
def _read(file: Path, *_stamp: int) -> str:
    return sha256_file(file)


def _numbers(folder: Path) -> dict[str, float]:
    """What the trainer noted about the checkpoint."""
    try:
        state = dict(read_json(folder / STATE))
    except (FileNotFoundError, Damaged, TypeError, ValueError):
        return {}
    noted = {name: state.get(name) for name in NUMBERS}
    return {name: value for name, value in noted.items() if isinstance(value, float) and isfinite(value)}
