"""Hugging Face data sets as a source: `hf:owner/name[:split]`, or a local folder that holds one.

Rows are streamed, never all in memory; pictures stay encoded (`Image(decode=False)`) until our own decoding
child has them. No code of a data set is ever run: `datasets` reads data files only.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from registry.errors import BadInput
from registry.files import expand_home
from studio.datasets.captions import as_caption, caption_column
from studio.datasets.decode import Source, read_file
from studio.datasets.listing import clean_name

HUB = "hf:"
HUB_SECONDS = 15.0  # to wait for its first answer
DEFAULT_SPLIT = "train"
_SAVED = ("state.json", "dataset_dict.json")  # written by `Dataset.save_to_disk`
_SPEC = re.compile(r"hf:(?P<name>.+?)(?::(?P<split>[\w.\-\[\]%+]+))?")


class HubPictures:
    """The pictures of one split, in order, with captions.

    Args:
        spec: `hf:owner/name[:split]`, or `hf:FOLDER[:split]`.

    Raises:
        BadInput: no such data set or split, no connection, no column of pictures.
    """

    def __init__(self, spec: str) -> None:
        matched = _SPEC.fullmatch(spec)
        if matched is None:
            raise BadInput(spec, "names no data set", "write hf:owner/name or hf:owner/name:split")
        self.spec = spec
        self.refused: list[BadInput] = []
        self.notes: list[str] = []
        name, split = matched["name"], matched["split"] or ""
        folder = expand_home(name)
        self._folder = folder.resolve() if folder.is_dir() else None
        with _one_line(spec):
            self._rows = _load(str(self._folder or name), split, local=self._folder is not None)
            features = _features(self._rows)
        self._picture, self._caption = self._columns(features)
        self.total = _length(self._rows)

    def __iter__(self) -> Iterator[Source]:
        from datasets import Image

        with _one_line(self.spec):
            columns = [self._picture] + ([self._caption] if self._caption else [])
            rows = self._rows.select_columns(columns).cast_column(self._picture, Image(decode=False))
            for number, row in enumerate(rows):
                yield self._source(number, row)

    def _columns(self, features: Mapping[str, Any]) -> tuple[str, str]:
        """The column of pictures and the one of captions ("" when there is none)."""
        from datasets import Image

        pictures = [name for name, feature in features.items() if isinstance(feature, Image)]
        if not pictures:
            wrong = f"has no column of pictures (columns: {', '.join(features) or 'none'})"
            raise BadInput(self.spec, wrong, "choose a data set with an Image column")
        picture = next((name for name in pictures if name.lower() == "image"), pictures[0])
        if len(pictures) > 1:
            self.notes.append(f"of the columns {', '.join(pictures)}, {picture} was taken for the pictures")
        caption = caption_column(name for name, feature in features.items() if _is_text(feature))
        if not caption:
            self.notes.append(f"no column looks like captions (columns: {', '.join(features)})")
        return picture, caption

    def _source(self, number: int, row: Mapping[str, Any]) -> Source:
        cell = row[self._picture] or {}
        data, path = cell.get("bytes"), str(cell.get("path") or "")
        name = clean_name(PurePosixPath(path.replace("\\", "/")).name) or f"row {number:06d}"
        caption = as_caption(row[self._caption]) if self._caption else ""
        return Source(name, self._reader(name, data, path), caption)

    def _reader(self, name: str, data: bytes | None, path: str) -> Callable[[], bytes]:
        def read() -> bytes:
            if data is not None:
                return data
            if not path:
                raise BadInput(name, "has no picture in its row", "correct the row")
            # A table may name any path; only files of the data set itself are opened.
            file = Path(path).resolve()
            if not any(file.is_relative_to(root) for root in self._roots()):
                raise BadInput(name, "lies outside its data set", "put the pictures into the data set")
            return read_file(file, name)

        return read

    def _roots(self) -> list[Path]:
        if self._folder is not None:
            return [self._folder]
        from datasets import config

        return [Path(str(config.HF_DATASETS_CACHE)).resolve(), Path(str(config.HF_CACHE_HOME)).resolve()]


def _load(name: str, split: str, *, local: bool) -> Any:
    from datasets import DatasetDict, disable_progress_bars, load_dataset, load_from_disk

    disable_progress_bars()
    if local and any((Path(name) / saved).is_file() for saved in _SAVED):
        saved = load_from_disk(name)
        if not isinstance(saved, DatasetDict):
            return saved
        if (split or DEFAULT_SPLIT) not in saved:
            raise ValueError(f"no split {split or DEFAULT_SPLIT!r}; it has {', '.join(map(str, saved))}")
        return saved[split or DEFAULT_SPLIT]
    revision = None if local else _pinned(name)
    return load_dataset(name, split=split or DEFAULT_SPLIT, revision=revision, streaming=True)


def _pinned(name: str) -> str | None:
    """The data set's newest commit; one request, where the library tries for half a minute."""
    from huggingface_hub import HfApi

    return HfApi().dataset_info(name, timeout=HUB_SECONDS).sha


def _features(rows: Any) -> Mapping[str, Any]:
    """Columns and their types; a stream may have to read its first rows to know."""
    if rows.features is None:
        rows = rows._resolve_features()
    return dict(rows.features or {})


def _length(rows: Any) -> int:
    return len(rows) if hasattr(rows, "__len__") else 0


def _is_text(feature: Any) -> bool:
    inner = getattr(feature, "feature", feature)  # of a list: its items
    return getattr(inner, "dtype", "") in {"string", "large_string"}


class _one_line:  # noqa: N801 - reads as a statement
    """Turns whatever the library raises in the block into one line about `spec`."""

    def __init__(self, spec: str) -> None:
        self._spec = spec

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, BadInput):
            raise _explained(self._spec, error) from error


_UNREACHABLE = ("ConnectionError", "ConnectError", "OfflineMode", "Timeout", "SocketBlocked")


def _explained(spec: str, error: Exception) -> BadInput:
    names = [type(e).__name__ for e in _chain(error)]
    said = " ".join(str(error).split())[:200]
    if any(part in name for name in names for part in _UNREACHABLE):
        do = "check the connection, or download the data set and give its folder"
        return BadInput(spec, "cannot be reached on the hub", do)
    if names[0] in {"DatasetNotFoundError", "RepositoryNotFoundError", "GatedRepoError"}:
        token = "" if os.environ.get("HF_TOKEN") else "; a private one needs HF_TOKEN in the environment"
        return BadInput(spec, "is not on the hub, or not for you", f"check the name{token}")
    if "split" in said.lower():
        return BadInput(spec, f"has no such split ({said})", "write hf:owner/name:split")
    return BadInput(spec, f"cannot be read as a data set ({said or names[0]})", "check it with its owner")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
