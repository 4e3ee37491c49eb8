"""Which checkpoint folders of a run can be trusted: complete, unchanged, and signed by this workspace."""

from dataclasses import dataclass
from pathlib import Path

from registry.errors import Damaged
from registry.files import read_json
from trainers.rundir import ADAPTER, RunDir, checkpoint_step, verify_checkpoint

MANIFEST = "manifest.json"
STATE = "state.json"


@dataclass(frozen=True)
class Verified:
    """A checkpoint folder that verified."""

    folder: Path
    stamp: int  # mtime of its manifest, ns: another one of the same step is another checkpoint
    loss: float | None

    @property
    def adapter(self) -> Path:
        """Its adapter file."""
        return self.folder / ADAPTER


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
        elif verify_checkpoint(folder, key):
            found[step] = Verified(folder, stamp, _loss(folder))
    return dict(sorted(found.items()))


def _loss(folder: Path) -> float | None:
    """Smoothed loss at the checkpoint, when the trainer noted it."""
    try:
        loss = read_json(folder / STATE).get("loss")
    except (FileNotFoundError, Damaged, AttributeError):
        return None
    return loss if isinstance(loss, float) else None
