"""Other metadata in an adapter file; not a byte of its weights changes."""

import base64
import io
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from registry.errors import BadInput
from registry.formats.header import shown

LONGEST = 1 << 20  # characters of a value
THUMBNAIL = 256  # longer side in pixels, as ModelSpec asks for
_PIXELS = 100_000_000


@dataclass(frozen=True, kw_only=True)
class Edit:
    """What to change; None = leave as it is, "" = take away."""

    title: str | None = None
    trigger_words: Sequence[str] | None = None
    licence: str | None = None
    description: str | None = None
    author: str | None = None
    thumbnail: Path | None = None
    values: Mapping[str, str] = field(default_factory=dict[str, str])
    remove: Collection[str] = ()


def edited(metadata: Mapping[str, str], edit: Edit) -> dict[str, str]:
    """`metadata` with the changes.

    Raises:
        BadInput: a key or value cannot be metadata, nothing is to be changed, a key to remove is not there,
            or the thumbnail is no picture.
    """
    if edit == Edit():
        raise BadInput("edit", "changes nothing", "give --set KEY=VALUE, --remove KEY or --title")
    for key in edit.remove:
        if key not in metadata:
            known = ", ".join(sorted(metadata)[:12]) or "none"
            raise BadInput(f"metadata {shown(key)}", "is not in the file", f"it has {known}")
    made = {key: value for key, value in metadata.items() if key not in edit.remove}
    for key, value in edit.values.items():
        _check(key, value)
        made[key] = value
    named: dict[str, str | None] = {
        "title": edit.title, "license": edit.licence, "description": edit.description, "author": edit.author,
    }  # fmt: skip
    if edit.trigger_words is not None:
        named["trigger_phrase"] = ", ".join(edit.trigger_words)
        made["studio.trigger_words"] = json.dumps(list(edit.trigger_words), ensure_ascii=False)
    if edit.thumbnail is not None:
        named["thumbnail"] = thumbnail(edit.thumbnail)
    for key, value in named.items():
        if value is not None:
            _check(key, value)
            made[f"modelspec.{key}"] = value
    if any(made.get(key) != metadata.get(key) for key in {*made, *metadata} if key.startswith("ss_")):
        made.pop("sshs_legacy_hash", None)  # of a window of the file that moves with the `ss_` metadata
    return {key: value for key, value in made.items() if value != ""}


def thumbnail(path: Path) -> str:
    """A picture as ModelSpec's data URL: JPEG, at most 256 pixels.

    Raises:
        BadInput: the file is no picture that can be read.
    """
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > _PIXELS:
                raise BadInput(
                    str(path), f"has {picture.width} x {picture.height} pixels", "give a smaller one"
                )
            small = picture.convert("RGB")
            small.thumbnail((THUMBNAIL, THUMBNAIL))
    except FileNotFoundError as error:
        raise BadInput(str(path), "does not exist", "check the path") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(str(path), "is no picture that can be read", "give a PNG or JPEG") from error
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def _check(key: str, value: str) -> None:
    if not key.strip() or len(key) > 200 or not key.isprintable():
        raise BadInput(f"metadata {shown(key)}", "is no name for a value", "use letters, digits, _ and .")
    if len(value) > LONGEST:
        raise BadInput(
            f"metadata {shown(key)}", f"has {len(value)} characters, the limit is {LONGEST}", "shorten it"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadInput(f"metadata {shown(key)}", "is not text", "write it in UTF-8") from error
