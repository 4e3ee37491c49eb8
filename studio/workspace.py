"""Where everything lives on disk, and the one lock on it."""

import logging
import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import platformdirs

from registry.blobs import Blobs
from registry.catalog import Catalog
from registry.errors import BadInput, Damaged
from registry.files import expand_home, storage_error, sweep_temporaries, sync_folder, temporary_beside
from registry.hashing import HashMemo, hash_folder
from registry.records import Base
from registry.trash import Trash
from studio.lock import hold_lock, read_holder
from studio.maintenance import Backups
from studio.settings import Settings
from trainers.rundir import RunDir

FOLDERS = (
    "bases", "blobs", "runs", "adapters", "embeddings", "wildcards", "samples", "exports", "trash", "cache",
    "backups", "inbox",
)  # fmt: skip
APP = "lora-studio"
PACKAGE = "package:"  # a location inside the installed package, whatever folder that is in now
POCKET = "pocket"
_SHIPPED = Path(__file__).parent / "pocket"
PACKAGED = {
    POCKET: _SHIPPED / "model",
    **{name: _SHIPPED / "models" / name for name in ("pocket-xl", "pocket-sd35", "pocket-flux")},
}
_FAMILIES = {POCKET: "sd15", "pocket-xl": "sdxl", "pocket-sd35": "sd35", "pocket-flux": "flux1"}
_log = logging.getLogger(__name__)


class Workspace:
    """One workspace. Opening costs little: catalog and settings are read when they are first asked for."""

    def __init__(self, home: Path) -> None:
        self.home = home

    @classmethod
    def open(cls, home: Path | None = None) -> "Workspace":
        """The workspace at `home`, else STUDIO_HOME, else the platform's user data folder; made when missing.

        Raises:
            BadInput: the folder cannot be made or is a file.
        """
        named = home or os.environ.get("STUDIO_HOME") or platformdirs.user_data_path(APP)
        folder = Path(os.path.abspath(expand_home(named)))  # noqa: PTH100  links stay as the person set them
        try:
            if folder.exists() and not folder.is_dir():
                raise BadInput(str(folder), "is a file, not a folder", "give another --home")
            for name in FOLDERS:
                if not (folder / name).is_dir():  # in a read-only workspace even an idle mkdir fails
                    (folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            do = "give a folder you may write to with --home or STUDIO_HOME"
            raise BadInput(str(folder), f"cannot be used as a workspace ({reason})", do) from error
        return cls(folder)

    @cached_property
    def settings(self) -> Settings:
        """`studio.toml` and the environment."""
        return Settings.load(self.home)

    @cached_property
    def catalog(self) -> Catalog:
        """The catalog, with the pocket bases in it."""
        url = self.settings.database_url or f"sqlite:///{self.home / 'catalog.sqlite'}"
        catalog = Catalog.open(url, backups=self.home / "backups")
        if not catalog.read_only:
            for name, folder in PACKAGED.items():
                if (folder / "model_index.json").exists():  # those of other families need not be installed
                    self._register_pocket(catalog, name, folder)
        return catalog

    @cached_property
    def blobs(self) -> Blobs:
        """Pictures by hash."""
        return Blobs(self.home / "blobs")

    @cached_property
    def trash(self) -> Trash:
        """What was deleted."""
        return Trash(self.home / "trash")

    @cached_property
    def memo(self) -> HashMemo:
        """Hashes of base weights, remembered."""
        return HashMemo(self.home / "cache" / "hashes.json")

    @cached_property
    def key(self) -> bytes:
        """32 random bytes that sign what this workspace wrote; made once, readable by its owner only.

        Raises:
            Damaged: the key file is not what was written.
            StudioError: it cannot be made.
        """
        path = self.home / "key"
        try:
            if not path.exists():
                _write_key(path)
            text = path.read_text(encoding="ascii").strip()
        except OSError as error:
            raise storage_error(path, error) from error
        except UnicodeDecodeError:
            text = ""
        try:
            key = bytes.fromhex(text)
        except ValueError:
            key = b""
        if len(key) != 32:
            do = "restore it from a backup; without it no earlier checkpoint can be resumed"
            raise Damaged(str(path), "is not the key that was written (64 hex digits)", do)
        return key

    def resolve(self, path: str) -> Path:
        """The real path of a `path` or `location` from the catalog.

        Raises:
            BadInput: a relative path that leaves the workspace.
        """
        if path.startswith(PACKAGE):
            return PACKAGED[path.removeprefix(PACKAGE)]
        if Path(path).is_absolute():
            return Path(path)
        # By its text only: people put `bases` on a larger disk with a symbolic link, as they may.
        full = Path(os.path.normpath(self.home / path))
        if not full.is_relative_to(self.home):
            raise BadInput(path, "leaves the workspace", "give a path inside it, or an absolute one")
        return full

    def relative(self, path: Path) -> str:
        """How the catalog writes a path: relative to the workspace inside it, absolute elsewhere."""
        full = Path(os.path.abspath(path))  # noqa: PTH100
        for root, place in ((self.home, full), (self.home.resolve(), full.resolve())):
            if place.is_relative_to(root):
                return place.relative_to(root).as_posix()
        return str(full)

    def run_dir(self, run_id: str) -> RunDir:
        """The directory of a run, there or not."""
        return RunDir(self.home / "runs" / run_id)

    def sample_dir(self, sample_id: str) -> Path:
        """The directory of a request for pictures and what was drawn, there or not."""
        return self.home / "samples" / sample_id

    @contextmanager
    def hold(self, owner: str) -> Generator[None]:
        """Be the one process that works here; meanwhile the catalog is backed up every hour.

        Args:
            owner: Who we are, for others to read: "worker", "studio demo".

        Raises:
            WorkspaceBusy: another process holds the workspace.
        """
        with hold_lock(self.home / "workspace.lock", owner):
            for name in FOLDERS:
                if name not in {"runs", "bases"}:  # runs may have living trainers: their worker knows
                    sweep_temporaries(self.home / name)
            if self.settings.trash_days:
                self.trash.empty(older_than=timedelta(days=self.settings.trash_days))
            with Backups(self.catalog, self.home / "backups", keep=self.settings.backups):
                yield

    def holder(self) -> dict[str, Any] | None:
        """Who holds the workspace now: {"owner", "pid", "host", "started"}; None when nobody does."""
        return read_holder(self.home / "workspace.lock")

    def _register_pocket(self, catalog: Catalog, name: str, folder: Path) -> None:
        """Make a pocket base a row; its weights are hashed once, and again when an update changes them."""
        base = Base(
            name=name, family=_FAMILIES[name], location=PACKAGE + name, kind="folder", builtin=True,
            weight_hash=hash_folder(folder, self.memo),
        )  # fmt: skip
        known = catalog.find(Base, name)
        if known is None:
            try:
                catalog.add(base)
            except BadInput:  # another process was quicker
                _log.debug("the base %s is there already", name)
        elif known.builtin and replace(base, id=known.id, created_at=known.created_at) != known:
            catalog.update(Base, known.id, location=base.location, weight_hash=base.weight_hash)


def _write_key(path: Path) -> None:
    """Make the key so that of two processes that arrive together both use the same one."""
    temporary = temporary_beside(path)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, secrets.token_hex(32).encode())
        os.fsync(descriptor)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
        sync_folder(path.parent)
    finally:
        os.close(descriptor)
        temporary.unlink(missing_ok=True)
