"""Which files of the given sources are meant as weights."""

import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from registry.errors import BadInput, NotFound
from registry.files import TEMPORARY, expand_home

ADAPTERS = {".safetensors"}
# Never loaded, but meant as weights: each is refused by name instead of overlooked.
FOREIGN = {".ckpt", ".pt", ".pth", ".bin", ".gguf", ".onnx", ".pkl"}


@dataclass(frozen=True)
class Found:
    """A file with what its folder says of it; `error` when it cannot be looked at."""

    path: Path  # absolute, links in its folders kept as the person has them
    size: int = 0
    mtime_ns: int = 0
    error: str = ""


def absolute(source: str | Path) -> Path:
    """The path that a source names; links stay as they are.

    Raises:
        NotFound: nothing is there.
        BadInput: it is empty, or neither a file nor a folder.
    """
    if not str(source):  # not the current folder: "$LORAS" that is not set
        raise BadInput("path", "is empty", "name a file or a folder")
    path = Path(os.path.abspath(expand_home(source)))  # noqa: PTH100
    try:
        there, plain = path.exists(), path.is_dir() or path.is_file()
    except OSError as error:
        raise BadInput(
            str(path), f"cannot be looked at ({error.strerror})", "check its permissions"
        ) from error
    if not there:
        raise NotFound(str(path), "does not exist", "check the path")
    if not plain:
        raise BadInput(str(path), "is neither a file nor a folder", "name a .safetensors file or a folder")
    return path


def find_files(sources: Sequence[Path], *, without: Path | None = None) -> Iterator[Found]:
    """Every weights file of the sources, each once, folder by folder in the order of their names.

    Hidden files and folders are left out, and folders that were visited already, through whatever link.

    Args:
        sources: Files and folders, absolute.
        without: A folder that is not entered from above: the workspace, whose files have rows already.
    """
    seen: set[tuple[int, int]] = set()
    if without is not None:
        status = without.stat()
        seen.add((status.st_dev, status.st_ino))
    given: set[Path] = set()
    for source in sources:
        files = _walk(source, seen) if source.is_dir() else iter([source])
        for file in files:
            if file not in given:
                given.add(file)
                yield look(file)


def folders_of(root: Path) -> Iterator[Path]:
    """`root` and the folders below it that `find_files` would visit."""
    yield from (folder for folder, _ in _folders(root, set()))


def look(path: Path) -> Found:
    """Size and time of one file; what is wrong with it becomes `error`."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode("utf-8", "replace")
        return Found(path, error=str(BadInput(shown, "has a name that is not UTF-8", "rename it")))
    try:
        status = path.stat()
    except OSError as error:
        wrong = f"cannot be read ({error.strerror})"
        if path.is_symlink():
            wrong = "is a link in a circle" if error.errno == errno.ELOOP else "is a link to nothing"
        return Found(path, error=str(BadInput(str(path), wrong, "check the file")))
    return Found(path, status.st_size, status.st_mtime_ns)


def _walk(root: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    for folder, entries in _folders(root, seen):
        for entry in entries:
            name = entry.name.lower()
            if name.endswith(TEMPORARY) or Path(name).suffix not in ADAPTERS | FOREIGN:
                continue
            if not _is_folder(entry):
                yield folder / entry.name


def _folders(root: Path, seen: set[tuple[int, int]]) -> Iterator[tuple[Path, list[os.DirEntry[str]]]]:
    """Folders depth first with their visible entries by name; one that cannot be listed is left out."""
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as listing:
                entries = sorted((e for e in listing if not e.name.startswith(".")), key=lambda e: e.name)
        except OSError:
            continue
        yield folder, entries
        below = [folder / entry.name for entry in entries if _is_folder(entry)]
        waiting += reversed(below)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
