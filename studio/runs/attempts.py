"""What a run on a cluster has in `ray/NUMBER/` of its run directory: a folder for each job made of it.

The run directory lies on storage that both sides mount, so these files are how the studio and the node that
trains talk to each other; neither needs the other's clock, pids or network.

    wish       what the studio wants: "", "stop" or "kill"     (studio writes, node reads)
    submitted  the cluster has taken the job                   (studio writes, studio reads)
    begun      host, pid and versions; written once            (node writes)
    ended      exit code; whether memory ran out               (node writes, when no trainer is left)
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from registry.errors import Damaged
from registry.files import read_json, sync_folder, write_json
from trainers.rundir import HEARTBEAT, RunDir

FOLDER = "ray"
Wish = Literal["", "stop", "kill"]


@dataclass(frozen=True)
class Attempt:
    """One job of a run; its number and the run name it on the cluster, which takes a name only once."""

    rundir: RunDir
    number: int

    @classmethod
    def new(cls, rundir: RunDir) -> "Attempt":
        """The next one; durable when this returns."""
        folder = rundir.file(FOLDER)
        folder.mkdir(exist_ok=True)
        numbers = [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]
        made = cls(rundir, max(numbers, default=0) + 1)
        made.folder.mkdir()
        made.ask("")
        for each in (made.folder, folder, rundir.path):
            sync_folder(each)
        return made

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.rundir.file(FOLDER) / str(self.number)

    @property
    def job(self) -> str:
        """What the cluster calls it."""
        return f"lora-{self.rundir.path.name}-{self.number}"

    def wish(self) -> Wish:
        """What the studio wants of it."""
        text = (self.folder / "wish").read_text(encoding="ascii").strip()
        return cast("Wish", text) if text in {"stop", "kill"} else ""

    def ask(self, wish: Wish) -> None:
        """Want it. Written into the file that is there: a network file system shows that to whoever opens it
        next, while of a file put in its place it may remember the old one for a minute.
        """
        with (self.folder / "wish").open("w", encoding="ascii") as stream:
            stream.write(wish)
            stream.flush()
            os.fsync(stream.fileno())

    @property
    def submitted(self) -> bool:
        """Whether the cluster is known to have taken it."""
        return (self.folder / "submitted").exists()

    def mark_submitted(self) -> None:
        """The cluster has said so."""
        write_json(self.folder / "submitted", True)

    @property
    def begun(self) -> bool:
        """Whether it has started on a node."""
        return (self.folder / "begun").exists()

    def begin(self, facts: dict[str, Any]) -> None:
        """Start, once.

        Raises:
            FileExistsError: it was started before.
        """
        with (self.folder / "begun").open("x", encoding="utf-8") as stream:
            json.dump(facts, stream)
            stream.flush()
            os.fsync(stream.fileno())
        sync_folder(self.folder)

    def ended(self) -> dict[str, Any] | None:
        """{"exit_code", "memory_killed"}; None while a trainer may live."""
        try:
            return cast("dict[str, Any]", read_json(self.folder / "ended"))
        except (FileNotFoundError, Damaged):
            return None

    def end(self, exit_code: int, *, memory_killed: bool = False) -> None:
        """No trainer is left of it."""
        write_json(self.folder / "ended", {"exit_code": exit_code, "memory_killed": memory_killed})

    def last_sign(self) -> int:
        """When a file of the trainer was last touched, ns on the clock of whoever touched it; -1 = never."""
        paths = (self.rundir.file(HEARTBEAT), self.folder / "begun")
        return max((path.stat().st_mtime_ns for path in paths if path.exists()), default=-1)
