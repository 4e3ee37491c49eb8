"""Where a build keeps what, and how results are packed. Loads no torch."""

import tarfile
from dataclasses import dataclass
from pathlib import Path

from registry.files import atomic_path

NOT_RECORDED, DIVERGED = 75, 76  # exit codes of a worker that another try may help


@dataclass(frozen=True)
class Files:
    """The folder of a build."""

    out: Path

    def pixels(self, kind: str) -> Path:
        """(N, 3, 64, 64) uint8."""
        return self.out / f"{kind}.npy"

    def captions(self, kind: str) -> Path:
        """A JSON list of captions a line; there when the pixels are complete."""
        return self.out / f"{kind}.jsonl"

    def state(self, stage: str) -> Path:
        """What a stage is resumed from."""
        return self.out / f"{stage}.state"

    def finished(self, stage: str) -> Path:
        """There when a stage is done."""
        return self.out / f"{stage}.done"

    def latents(self, channels: int) -> Path:
        """(N, channels, 16, 16) fp16, shifted and scaled."""
        return self.out / f"latents-{channels}.npy"

    def autoencoder(self, channels: int) -> Path:
        """Folder with config and weights in fp32."""
        return self.out / f"autoencoder-{channels}"

    def figures(self, channels: int) -> Path:
        """What an autoencoder keeps."""
        return self.out / f"autoencoder-{channels}.json"

    def result(self, name: str) -> Path:
        """Folder of a base: model/, fidelity.json, curve.jsonl, sheet.png."""
        return self.out / name


def pack_model(folder: Path, target: Path) -> None:
    """All that belongs to a base in one file, so that it is whole or the one before."""
    with atomic_path(target, durable=False) as temporary, tarfile.open(temporary, "w") as tar:
        for name in ("model", "fidelity.json", "curve.jsonl"):
            if (folder / name).exists():
                tar.add(folder / name, arcname=f"{folder.name}/{name}")


def pack_reports(out: Path, names: list[str], target: Path) -> None:
    """Contact sheets, curves and figures of all bases in one file."""
    with atomic_path(target, durable=False) as temporary, tarfile.open(temporary, "w") as tar:
        for file in sorted(out.glob("autoencoder-*.json")):
            tar.add(file, arcname=file.name)
        for name in names:
            for part in ("sheet.png", "fidelity.json", "curve.jsonl"):
                if (out / name / part).exists():
                    tar.add(out / name / part, arcname=f"{name}/{part}")
