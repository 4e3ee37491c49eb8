"""Files that are either the old ones or the new ones, never half of something.

A write goes to a temporary beside its target, is synced, renamed over the target, and the folder is synced.
"""

import errno
import json
import os
import re
import shutil
import stat
import unicodedata
from collections.abc import Generator
from contextlib import contextmanager, suppress
from math import ceil
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from registry.errors import BadInput, Damaged, StudioError

_OWNER = re.compile(r"\.(\d+)-[0-9a-f]{8}\.partial$")
TEMPORARY = ".partial"  # suffix of everything unfinished; swept at start


def sync_folder(folder: Path) -> None:
    """Make renames and new names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_beside(path: Path) -> Path:
    """A fresh temporary name in the folder of `path`; says which process owns it, for the sweep."""
    return path.with_name(f".{path.name[:40]}.{os.getpid()}-{uuid4().hex[:8]}{TEMPORARY}")


@contextmanager
def atomic_path(path: Path, *, durable: bool = True) -> Generator[Path]:
    """A temporary path beside `path`; renamed over it when the block ends, removed when it raises.

    For writers that want a path. `durable=False` skips fsync: for status files, where only tearing matters.
    """
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if durable:
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
        temporary.replace(path)
        if durable:
            sync_folder(path.parent)
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def atomic_file(path: Path, *, durable: bool = True) -> Generator[IO[bytes]]:
    """Like `atomic_path`, with the temporary opened for binary writing."""
    with atomic_path(path, durable=durable) as temporary, temporary.open("xb") as stream:
        yield stream


def atomic_write(path: Path, data: bytes | str, *, durable: bool = True) -> None:
    """Replace the content of `path`."""
    with atomic_file(path, durable=durable) as stream:
        stream.write(data.encode() if isinstance(data, str) else data)


@contextmanager
def atomic_folder(folder: Path) -> Generator[Path]:
    """A new folder `<folder>.partial`, renamed to `folder` when the block ends, removed when it raises.

    Raises:
        StudioError: the disk is full or the folder cannot be written.
    """
    temporary = folder.with_name(folder.name + TEMPORARY)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in sorted(temporary.rglob("*")):
            if file.is_dir():
                sync_folder(file)
            else:
                with file.open("rb") as written:
                    os.fsync(written.fileno())
        sync_folder(temporary)
        if folder.exists():
            remove_tree(folder)
        temporary.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise storage_error(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_tree(folder: Path) -> None:
    """Delete a folder so that a kill in between leaves a temporary, not half a folder."""
    doomed = temporary_beside(folder)
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def sweep_temporaries(root: Path) -> int:
    """Remove what interrupted writes left below `root`; returns how many.

    Files that a living process is writing now stay; folders `<name>.partial` do not say who writes them, so
    only whoever holds the lock on them may call this.
    """
    count = 0
    for path in list(root.rglob(f"*{TEMPORARY}")):
        if _in_use(path):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        count += 1
    return count


def _in_use(temporary: Path) -> bool:
    """Whether the process that made it still lives (and is not a younger one with the same number)."""
    owner = _OWNER.search(temporary.name)
    if owner is None:
        return False
    import psutil  # 20 ms that only a sweep pays

    try:
        return psutil.Process(int(owner[1])).create_time() <= temporary.lstat().st_mtime + 1
    except (psutil.Error, OSError):
        return False


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Replace `path` with `value` as JSON."""
    atomic_write(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n", durable=durable)


def read_json(path: Path) -> Any:
    """JSON content of `path`.

    Raises:
        Damaged: it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else error
        raise Damaged(str(path), f"is not JSON ({why})", "restore it from a backup or remove it") from error


def append_line(path: Path, value: Any) -> None:
    """Append `value` as one JSON line in a single write."""
    line = json.dumps(value, ensure_ascii=False) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def storage_error(path: Path, error: OSError) -> StudioError:
    """The one-line form of an operating system error at `path`."""
    reason = (error.strerror or str(error)).lower()
    do = (
        "free some space and try again"
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
        else "check the folder and its permissions"
    )
    return StudioError(str(path), f"cannot be written ({reason})", do)


def require_space(folder: Path, needed: int, what: str) -> None:
    """Refuse before starting when `folder`'s disk has less than `needed` bytes free.

    Raises:
        StudioError: "needs X, has Y".
    """
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise StudioError(
            str(folder),
            f"{what} needs {ceil(needed / 2**20)} MiB, the disk has {free // 2**20} MiB free",
            "free some space",
        )


def expand_home(path: str | Path) -> Path:
    """`path` with `~` and `~name` spelled out.

    Raises:
        BadInput: nobody of that name has a home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise BadInput(str(path), "has no home folder", "write the path out") from error


def inside(root: Path, path: str | Path) -> Path:
    """`root / path`, resolved, and proven to lie within `root`.

    Raises:
        BadInput: the path leaves `root` (absolute, `..`, symbolic link).
    """
    resolved = (root / path).resolve()
    if not resolved.is_relative_to(root.resolve()):
        raise BadInput(str(path), "leaves its folder", "use a plain relative path")
    return resolved


_RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{n}{i}" for n in ("COM", "LPT") for i in range(1, 10))}
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def check_name(name: str, what: str = "name") -> str:
    """A name that a person gives to a thing: 1 to 100 visible characters, no path separators, no controls.

    Raises:
        BadInput: with the rule that is broken.
    """
    do = "use 1 to 100 letters, digits, spaces and signs other than / and \\"
    shown = repr(name if len(name) <= 60 else name[:57] + "...")
    if not name.strip() or name in {".", ".."}:
        raise BadInput(f"{what} {shown}", "is empty or only dots", do)
    if len(name) > 100:
        raise BadInput(f"{what} {shown}", f"has {len(name)} characters", do)
    if name != name.strip():
        raise BadInput(f"{what} {shown}", "begins or ends with a space", "leave the space out")
    if any(c in "/\\" or unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for c in name):
        raise BadInput(f"{what} {shown}", "has a path separator, control or direction character", do)
    if name.split(".")[0].upper() in _RESERVED:
        raise BadInput(f"{what} {shown}", "is reserved by some operating systems", "choose another name")
    return name


def file_stem(name: str) -> str:
    """`name` as a file stem for exports: [A-Za-z0-9._-], at most 100 bytes, never empty or reserved."""
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    stem = _UNSAFE.sub("-", ascii_name).strip(".-")[:100] or "adapter"
    return f"_{stem}" if stem.split(".")[0].upper() in _RESERVED else stem


def is_regular(path: Path) -> bool:
    """Whether `path` is a plain file and not a link, device, pipe or folder."""
    return stat.S_ISREG(path.lstat().st_mode)
