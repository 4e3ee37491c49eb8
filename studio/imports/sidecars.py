"""What other tools wrote beside an adapter: A1111 and Forge, LoRA Manager, Civitai's helpers, InvokeAI.

| file | written by |
|---|---|
| `<stem>.json` | A1111, Forge, SwarmUI ("activation text", ...); InvokeAI ("trigger_phrases", ...) |
| `<stem>.metadata.json` | LoRA Manager, with Civitai's answer inside |
| `<stem>.civitai.info` | Civitai Helper and other downloaders: the answer itself |
| `<stem>.png` and others | all of them |

A damaged one is a note in the report and no reason to refuse the adapter.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from registry.errors import BadInput
from studio.imports import text

MAX_BYTES = 4 * 2**20  # of a sidecar; Civitai's answer carries the prompts of all its pictures
PICTURES = (
    ".preview.png",
    ".png",
    ".preview.jpg",
    ".jpg",
    ".preview.jpeg",
    ".jpeg",
    ".preview.webp",
    ".webp",
)
_SITE = "https://civitai.com/models/"
_WEIGHTS = (-4.0, 4.0)  # what is believed of a recommended weight


@dataclass(frozen=True)
class Sidecar:
    """What the files beside an adapter say of it."""

    name: str = ""
    trigger_words: tuple[str, ...] = ()
    weight: float | None = None
    note: str = ""
    tags: tuple[str, ...] = ()
    licence: str = ""
    base_name: str = ""
    source: str = ""  # page it came from
    picture: Path | None = None
    kinds: tuple[str, ...] = ()  # endings of the files that were read
    wrong: tuple[str, ...] = field(default=())  # what was wrong with which, a line each

    def over(self, other: "Sidecar") -> "Sidecar":
        """This one, completed by `other`."""
        return replace(
            self,
            name=self.name or other.name,
            trigger_words=tuple(dict.fromkeys([*self.trigger_words, *other.trigger_words])),
            weight=other.weight if self.weight is None else self.weight,
            note=self.note or other.note,
            tags=tuple(dict.fromkeys([*self.tags, *other.tags])),
            licence=self.licence or other.licence,
            base_name=self.base_name or other.base_name,
            source=self.source or other.source,
            kinds=self.kinds + other.kinds,
            wrong=self.wrong + other.wrong,
        )


def read_sidecars(file: Path) -> Sidecar:
    """Everything that lies beside the adapter `file`; A1111's own words count before a site's."""
    found = Sidecar()
    for ending, read in ((".json", _local), (".metadata.json", _manager), (".civitai.info", _civitai)):
        path = file.with_name(file.stem + ending)
        if not path.is_file():
            continue
        try:
            values = _load(path)
        except BadInput as error:
            found = found.over(Sidecar(wrong=(str(error),)))
            continue
        found = found.over(replace(read(values), kinds=(ending,)))
    pictures = (file.with_name(file.stem + ending) for ending in PICTURES)
    return replace(found, picture=next((path for path in pictures if path.is_file()), None))


def _load(path: Path) -> Mapping[str, Any]:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise BadInput(str(path), f"cannot be read ({error.strerror})", "it was left out") from error
    if size > MAX_BYTES:
        raise BadInput(str(path), f"has more than {MAX_BYTES >> 20} MiB", "it was left out")
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise BadInput(str(path), f"cannot be read ({error.strerror})", "it was left out") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(str(path), "is not JSON", "it was left out") from error
    if not isinstance(value, dict):
        raise BadInput(str(path), "is not a JSON object", "it was left out")
    return cast("dict[str, Any]", value)


def _local(values: Mapping[str, Any]) -> Sidecar:
    """A1111's and Forge's keys, and InvokeAI's."""
    negative = text.note(values.get("negative text"))
    notes = (
        text.note(values.get("description")),
        text.note(values.get("notes")),
        f"Negative: {negative}" if negative else "",
    )
    settings = _object(values.get("default_settings"))
    weight = text.number(values.get("preferred weight"), *_WEIGHTS) or None  # A1111 writes 0 for "not set"
    return Sidecar(
        name=text.title(values.get("name")),
        trigger_words=text.words(values.get("activation text")) + text.words(values.get("trigger_phrases")),
        weight=weight or text.number(settings.get("weight"), *_WEIGHTS),
        note="\n".join(filter(None, notes)),
        base_name=text.line(values.get("sd version")),
    )


def _civitai(values: Mapping[str, Any]) -> Sidecar:
    """Civitai's answer for one version of a model."""
    model = _object(values.get("model"))
    number = values.get("modelId")
    name = text.title(model.get("name"))
    version = text.title(values.get("name"))
    return Sidecar(
        name=text.title(f"{name} {version}") if name and version else name,
        trigger_words=text.words(values.get("trainedWords")),
        note=text.note(values.get("description")) or text.note(model.get("description")),
        tags=text.words(model.get("tags")),
        licence=_licence(model),
        base_name=text.line(values.get("baseModel")),
        source=f"{_SITE}{number}" if isinstance(number, int) and not isinstance(number, bool) else "",
    )


def _manager(values: Mapping[str, Any]) -> Sidecar:
    """LoRA Manager's file; what a person set there counts before what the site says."""
    tips = values.get("usage_tips")
    if isinstance(tips, str):
        try:
            tips = json.loads(tips)
        except (ValueError, RecursionError):
            tips = {}
    own = Sidecar(
        name=text.title(values.get("model_name")),
        weight=text.number(_object(tips).get("strength"), *_WEIGHTS),
        note=text.note(values.get("notes")) or text.note(values.get("modelDescription")),
        tags=text.words(values.get("tags")),
        base_name=text.line(values.get("base_model")),
    )
    site = _object(values.get("civitai"))
    return own.over(_civitai(site)) if site else own


def _licence(model: Mapping[str, Any]) -> str:
    """The uses that Civitai's author allows, in words."""
    if "allowCommercialUse" not in model:
        return ""
    commercial: Any = model["allowCommercialUse"]
    uses = ", ".join(text.words(commercial)) if isinstance(commercial, list) else text.line(commercial)
    parts = [f"commercial use: {uses or 'None'}"]
    for key, words in (("allowDerivatives", "derivatives"), ("allowNoCredit", "use without credit")):
        if isinstance(model.get(key), bool):
            parts.append(f"{words}: {'allowed' if model[key] else 'not allowed'}")
    return "Civitai: " + "; ".join(parts)


def _object(value: Any) -> Mapping[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
