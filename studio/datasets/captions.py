"""Captions that came with pictures: sidecar files, metadata tables, names. Foreign text stays text.

The first that says something wins: `001.txt`, `001.caption`, `001.png.txt`, the row of `metadata.jsonl` or
`metadata.csv` (Hugging Face imagefolder: `file_name` and a text column), then, when asked for, the name of
the file or of its folder.
"""

import csv
import io
import json
import math
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any, Literal, cast

from registry.errors import BadInput
from studio.datasets.listing import METADATA, SIDECARS, Entry, Listing, natural, some, suffix

CaptionsFrom = Literal["", "file", "folder"]

COLUMNS = ("text", "caption", "captions", "prompt", "description", "label_text", "sentence", "sentences")
MAX_REPEATS, MAX_WEIGHT = 1000, 100
MAX_CAPTION = 10_000  # characters; the longest text encoder reads 512 tokens
MAX_SIDECAR = 256 * 1024  # bytes
MAX_METADATA = 256 * 2**20  # bytes
csv.field_size_limit(MAX_SIDECAR)


def decode_text(data: bytes) -> tuple[str, str]:
    """Text of a caption file and a note: UTF-8 or UTF-16 by its byte order mark, UTF-8, else Latin-1."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace"), ""
    try:
        return data.decode("utf-8-sig"), ""
    except UnicodeDecodeError:
        return data.decode("latin-1"), "is not UTF-8; read as Latin-1"


def clean_caption(text: str) -> str:
    """`text` trimmed; lines kept, empty ones dropped; control characters and lone surrogates out."""
    text = text.encode("utf-8", "replace").decode()
    lines = ("".join(filter(_is_text, line)).strip() for line in text.splitlines())
    return "\n".join(filter(None, lines))[:MAX_CAPTION]


def caption_column(columns: Iterable[str]) -> str:
    """The column that holds captions, by its name; "" when none does."""
    by_name = {column.lower(): column for column in columns}
    return next((by_name[name] for name in COLUMNS if name in by_name), "")


def as_caption(value: Any) -> str:
    """A cell of a table as a caption; of a list of variants the first."""
    if isinstance(value, list | tuple):
        value = next(iter(cast("list[Any]", value)), "")
    return clean_caption(value) if isinstance(value, str) else ""


def read_numbers(row: dict[str, Any]) -> tuple[int, float] | None:
    """Repeats and weight of a row with one of those columns; None without them.

    Raises:
        ValueError: not a number, or out of range; what is wrong, in words.
    """
    found: list[float] = []
    for column, highest in (("repeats", MAX_REPEATS), ("weight", MAX_WEIGHT)):
        cell = row.get(column)
        if cell is None or cell == "":
            found.append(1.0)
            continue
        try:
            value = math.nan if isinstance(cell, bool) else float(cell)
        except (TypeError, ValueError):
            value = math.nan
        whole = column == "repeats"
        if not (1 if whole else 0) <= value <= highest or (whole and value != int(value)):
            kind = "a whole number from 1" if whole else "a number from 0"
            raise ValueError(f"has {column} {str(cell)[:40]!r}, which is not {kind} to {highest}")
        found.append(value)
    given = any(row.get(column) not in (None, "") for column in ("repeats", "weight"))
    return (int(found[0]), found[1]) if given else None


def folder_repeats(name: str) -> int:
    """Repeats that kohya's folder names hold: 10 for "10_sks dog/001.png"; 0 for another folder."""
    matched = re.match(r"(\d{1,4})_.", PurePosixPath(name).parent.name)
    return min(int(matched[1]), MAX_REPEATS) if matched else 0


def from_name(name: str, source: CaptionsFrom) -> str:
    """A caption from the name of a file ("black_cat-02.png") or folder ("10_sks dog", kohya's repeats)."""
    path = PurePosixPath(name)
    if source == "file":
        words = re.sub(r"[\s_-]*\(?\d+\)?$", "", path.stem) or path.stem
    elif source == "folder":
        words = re.sub(r"^\d+_", "", path.parent.name)
    else:
        return ""
    return clean_caption(re.sub(r"[_\s]+", " ", words))


class Captions:
    """The captions of one listing; what is worth saying about them goes into its notes and refusals."""

    def __init__(self, listing: Listing, names: CaptionsFrom = "") -> None:
        self._listing = listing
        self._names: CaptionsFrom = names
        self._lower = {name.lower(): name for name in listing.entries}
        self._used: set[str] = set()
        self._remarks: dict[str, list[str]] = {}
        self._table: dict[str, str] = {}
        self._numbers: dict[str, tuple[int, float]] = {}
        for entry in listing.entries.values():
            if PurePosixPath(entry.name).name in METADATA:
                self._read_metadata(entry)

    def of(self, name: str) -> str:
        """Caption of the picture `name`; "" when there is none."""
        listed = self._table.get(name, "")
        self._used.add(name)
        for candidate in _sidecar_names(name):
            entry = self._listing.entries.get(self._lower.get(candidate.lower(), ""))
            if entry is not None and entry.name != name and (caption := self._read_sidecar(entry)):
                if listed and listed != caption:
                    self._remark("captions taken from their own file, against the table", name)
                return caption
        return listed or from_name(name, self._names)

    def numbers(self, name: str) -> tuple[int, float]:
        """Repeats and weight of the picture `name` as its row says; (1, 1) when it says nothing."""
        return self._numbers.get(name, (1, 1.0))

    def finish(self) -> None:
        """Write the remarks into the listing's notes; call it when all pictures were asked for."""
        unused = [n for n in self._listing.entries if suffix(n) in SIDECARS and n not in self._used]
        missing = [name for name in self._table | self._numbers if name not in self._used]
        for text, names in (
            ("caption files without a picture", unused),
            ("rows of the metadata table without a picture", missing),
            *self._remarks.items(),
        ):
            if names:
                names.sort(key=natural)
                self._listing.notes.append(f"{text}: {some(names)}")

    def _remark(self, text: str, name: str) -> None:
        self._remarks.setdefault(text, []).append(name)

    def _read_sidecar(self, entry: Entry) -> str:
        self._used.add(entry.name)
        try:
            data = entry.read(MAX_SIDECAR)
        except BadInput as error:
            self._listing.refuse(error)
            return ""
        text, note = decode_text(data)
        if note:
            self._remark("caption files that are not UTF-8, read as Latin-1", entry.name)
        caption = clean_caption(text)
        if not caption:
            self._remark("empty caption files", entry.name)
        return caption

    def _read_metadata(self, entry: Entry) -> None:
        folder = posixpath.dirname(entry.name)
        try:
            text, note = decode_text(entry.read(MAX_METADATA))
            lines = suffix(entry.name) == ".jsonl"
            rows = _json_rows(text, self._refuse(entry)) if lines else _csv_rows(text)
            if note:
                self._remark("tables that are not UTF-8, read as Latin-1", entry.name)
            for number, row in rows:
                self._take_row(entry, folder, number, row)
        except (BadInput, csv.Error) as error:
            self._listing.refuse(error if isinstance(error, BadInput) else _no_csv(entry.name, error))

    def _take_row(self, entry: Entry, folder: str, number: int, row: dict[str, Any]) -> None:
        file_name = row.get("file_name")
        column = caption_column(row)
        if not isinstance(file_name, str) or not file_name:
            self._refuse(entry)(number, "has no file_name")
            return
        name = posixpath.normpath(posixpath.join(folder, file_name))
        try:
            numbers = read_numbers(row)
        except ValueError as error:
            self._refuse(entry)(number, str(error))
            return
        if numbers is not None:
            self._numbers[name] = numbers
        if column:
            self._table[name] = as_caption(row[column])
        elif numbers is None:
            self._remark(f"rows without a caption column ({', '.join(COLUMNS[:4])})", f"line {number}")

    def _refuse(self, entry: Entry) -> "_Refuse":
        return _Refuse(self._listing, entry.name)


class _Refuse:
    """Names a line of a table as unusable."""

    def __init__(self, listing: Listing, name: str) -> None:
        self._listing, self._name = listing, name

    def __call__(self, line: int, wrong: str) -> None:
        thing = f"{self._name} line {line}"
        self._listing.refuse(BadInput(thing, wrong, "correct the line"))


def _sidecar_names(name: str) -> tuple[str, ...]:
    stem = name.removesuffix(PurePosixPath(name).suffix)
    return f"{stem}.txt", f"{stem}.caption", f"{name}.txt"


def _is_text(character: str) -> bool:
    return unicodedata.category(character) != "Cc" or character == "\t"


def _no_csv(name: str, error: csv.Error) -> BadInput:
    return BadInput(name, f"is no CSV ({error})", "save it as CSV with a header line")


def _json_rows(text: str, refuse: _Refuse) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            refuse(number, "is not JSON")
            continue
        if isinstance(row, dict):
            yield number, cast("dict[str, Any]", row)
        else:
            refuse(number, "is not a JSON object")


def _csv_rows(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    for row in reader:
        yield reader.line_num, {str(key): value for key, value in row.items() if key is not None}
