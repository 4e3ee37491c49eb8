"""Zips of pictures, read member by member in memory: nothing is ever unpacked to a path the zip chooses."""

import stat
import zipfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path, PurePosixPath, PureWindowsPath

from registry.errors import BadInput
from studio.datasets.decode import too_large
from studio.datasets.listing import Entry, Listing, clean_name, ignored

MAX_MEMBERS = 20_000
MAX_TOTAL = 16 * 2**30  # bytes unpacked
MAX_RATIO = 100  # unpacked / packed, for zips that grow beyond RATIO_FROM; photos have 1, drawings up to 20
RATIO_FROM = 64 * 2**20  # bytes

_DAMAGE = (zipfile.BadZipFile, EOFError, OSError, ValueError, RuntimeError)  # NotImplementedError is the last


def is_zip(head: bytes, name: str) -> bool:
    """Whether content or name says zip; a picture with a zip behind it stays a picture."""
    return head.startswith((b"PK\x03\x04", b"PK\x05\x06")) or name.lower().endswith(".zip")


@contextmanager
def open_zip(source: Path | bytes, label: str) -> Generator[Listing]:
    """The plain files of a zip; members that cannot be used are in `refused`, each with its reason.

    Entries can be read while the block lasts, also from several threads.

    Raises:
        BadInput: damaged, too many members, or a bomb.
    """
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    try:
        archive = zipfile.ZipFile(BytesIO(source) if isinstance(source, bytes) else source)
    except _DAMAGE as error:
        wrong = "is empty (0 bytes)" if size == 0 else "is damaged: its table of contents cannot be read"
        raise BadInput(label, wrong, "copy or download it again") from error
    with archive:
        members = [info for info in archive.infolist() if not _is_folder(info)]
        _check_caps(label, members, size)
        yield _list_members(archive, members, label)


def _check_caps(label: str, members: list[zipfile.ZipInfo], size: int) -> None:
    total = sum(info.file_size for info in members)
    if len(members) > MAX_MEMBERS:
        wrong = f"holds {len(members)} files, more than {MAX_MEMBERS}"
        raise BadInput(label, wrong, "split it, or give the unpacked folder")
    if total > MAX_TOTAL or (total > RATIO_FROM and total > MAX_RATIO * size):
        wrong = f"would grow from {_size(size)} to {_size(total)}, which no zip of pictures does"
        raise BadInput(label, wrong, "give the unpacked folder if you trust it")


def _list_members(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], label: str) -> Listing:
    listing = Listing(label)
    for info in members:
        name = clean_name(info.orig_filename)
        wrong, do = _refusal(info) or ("", "")
        if not wrong and ignored(info.filename):
            continue
        if not wrong and name in listing.entries:
            wrong, do = "is in the zip twice under one name", "rename one of them"
        if wrong:
            listing.refuse(BadInput(name, wrong, do))
        else:
            listing.add(Entry(name, _reader(archive, info, name)))
    return listing


def _refusal(info: zipfile.ZipInfo) -> tuple[str, str] | None:
    """What is wrong with a member before it is read, and what to do; None when nothing is."""
    given = info.orig_filename
    if "\0" in given:
        return "has a NUL character in its name", "rename it"
    parts = PurePosixPath(given.replace("\\", "/")).parts
    if ".." in parts or given.startswith(("/", "\\")) or PureWindowsPath(given).drive:
        return "points outside the zip", "make the zip again with plain file names"
    if not given.isprintable() or len(given) > 1000:
        return "has a name that is no plain file name", "rename it"
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
        return "is a link or device, not a file", "put the file itself into the zip"
    if info.flag_bits & 0x1:
        return "is encrypted", "make the zip without a password"
    return None


def _reader(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> Callable[[int], bytes]:
    def read(limit: int) -> bytes:
        if info.file_size > limit:
            raise too_large(name, info.file_size, limit)
        try:
            with archive.open(info) as stream:
                return stream.read(limit)  # zipfile stops at the size it announced and checks the CRC
        except Exception as error:  # zlib.error, BadZipFile, NotImplementedError: each compressor has its own
            raise BadInput(name, "is damaged inside the zip", "make the zip again") from error

    return read


def _is_folder(info: zipfile.ZipInfo) -> bool:
    return info.is_dir() or stat.S_ISDIR(info.external_attr >> 16)


def _size(count: int) -> str:
    return f"{count / 1000:.0f} kB" if count < 10**6 else f"{count / 10**6:.0f} MB"
