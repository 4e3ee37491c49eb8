"""Recipes as text: facts about fields, TOML in and out, and errors that a person can act on."""

import difflib
import re
import textwrap
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import tomlkit
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from tomlkit.items import Comment, Table, Whitespace

from registry.errors import BadInput
from trainers.recipe_section import Needs


@dataclass(frozen=True)
class FieldFacts:
    """What a form, a help text or an error message needs to know about a field."""

    key: str  # dotted, as in --set
    kind: Literal["text", "choice", "switch", "whole", "number", "list", "table"]
    default: Any  # None also where there is none: see required
    required: bool
    optional: bool  # may be none
    doc: str
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    low_open: bool = False  # the bound itself is not allowed
    high_open: bool = False
    multiple_of: int | None = None
    items: str = ""  # what a list holds, in words
    needs: tuple[Needs, ...] = ()  # where it counts; () = everywhere

    @property
    def allowed(self) -> str:
        """The allowed values in words: "a whole number from 1 to 1024"."""
        words = {"text": "text", "switch": "true or false", "list": f"a list of {self.items}"}
        words["table"] = "a table of regular expressions and numbers" + self._range()
        if self.kind == "choice":
            words["choice"] = "one of " + ", ".join(self.choices)
        elif self.kind in ("whole", "number"):
            words[self.kind] = ("a whole number" if self.kind == "whole" else "a number") + self._range()
        return words[self.kind] + (" or none" if self.optional else "")

    def _range(self) -> str:
        if self.low is None or self.high is None:
            return ""
        low, high = (f"{bound:.0f}" if bound >= 1000 else f"{bound:g}" for bound in (self.low, self.high))
        if self.low_open or self.high_open:
            low = f"above {low}" if self.low_open else f"at least {low}"
            text = f" {low} and " + (f"below {high}" if self.high_open else f"at most {high}")
        else:
            text = f" from {low} to {high}"
        return text + (f", a multiple of {self.multiple_of}" if self.multiple_of else "")


def field_facts(model: type[BaseModel], prefix: str = "") -> dict[str, FieldFacts]:
    """Facts of every leaf field below `model`, by dotted key, in order."""
    facts: dict[str, FieldFacts] = {}
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            facts |= field_facts(info.annotation, f"{prefix}{name}.")
        else:
            facts[prefix + name] = _facts(prefix + name, info)
    return facts


def _facts(key: str, info: FieldInfo) -> FieldFacts:
    annotation, metadata = info.annotation, list(info.metadata)
    optional = NoneType in get_args(annotation)
    if optional:
        annotation = next(part for part in get_args(annotation) if part is not NoneType)
    if hasattr(annotation, "__metadata__"):  # Annotated[...] inside a union
        for extra in annotation.__metadata__:  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
            metadata += extra.metadata if isinstance(extra, FieldInfo) else [extra]
        annotation = get_args(annotation)[0]
    bounds = _bounds(metadata)
    if get_origin(annotation) is dict:
        bounds = _bounds_of_values(annotation)
    choices = get_args(annotation) if get_origin(annotation) is Literal else ()
    kinds: dict[Any, Any] = {bool: "switch", int: "whole", float: "number", str: "text"}
    return FieldFacts(
        key=key,
        kind="choice"
        if choices
        else "table"
        if get_origin(annotation) is dict
        else kinds.get(annotation, "list"),
        default=None if info.is_required() else info.get_default(call_default_factory=True),
        required=info.is_required(),
        optional=optional,
        doc=" ".join((info.description or "").split()),
        choices=choices,
        low=bounds.get("ge", bounds.get("gt")),
        high=bounds.get("le", bounds.get("lt")),
        low_open="gt" in bounds,
        high_open="lt" in bounds,
        multiple_of=bounds.get("multiple_of"),
        items=_items(key, annotation),
        needs=tuple(mark for mark in metadata if isinstance(mark, Needs)),
    )


def _items(key: str, annotation: Any) -> str:
    """What a list holds: numbers within their range in `tuple[Annotated[int, ...], ...]`, else texts."""
    inner = get_args(annotation)[0] if get_origin(annotation) is tuple else str
    if get_args(inner)[:1] != (int,):
        return "at most 16 texts"
    return _facts(key, FieldInfo.from_annotation(inner)).allowed.replace("a whole number", "whole numbers")


def _bounds(metadata: Sequence[Any]) -> dict[str, Any]:
    marks = ("ge", "gt", "le", "lt", "multiple_of")
    return {mark: getattr(item, mark) for item in metadata for mark in marks if hasattr(item, mark)}


def _bounds_of_values(annotation: Any) -> dict[str, Any]:
    """Of `dict[..., Annotated[number, Field(...)]]`."""
    extras = getattr(get_args(annotation)[1], "__metadata__", ())
    return _bounds([mark for extra in extras for mark in getattr(extra, "metadata", [extra])])


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Sections -> dotted keys. A table inside a section is one value: its keys are the person's own."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict) and not prefix:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `flatten`."""
    table: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, leaf = key.split(".")
        place = table
        for section in sections:
            place = place.setdefault(section, {})
        place[leaf] = value
    return table


def suggest(key: str, known: Sequence[str]) -> str:
    """Advice for a mistyped name: dotted ones are compared whole first, short ones by last part and table."""
    parts = {name.rpartition(".")[2]: name for name in reversed(known)}
    tables = {name.partition(".")[0]: name.partition(".")[0] for name in known if "." in name}
    whole, short = {name: name for name in known}, tables | parts
    tries = [(whole, key), (short, key.rpartition(".")[2])]
    for names, wanted in tries if "." in key else reversed(tries):
        if near := difflib.get_close_matches(wanted, names, n=1, cutoff=0.6):
            return f"Did you mean {names[near[0]]}? If not, remove it"
    return "see docs/recipes.md for the known ones"


@dataclass(frozen=True)
class Fault:
    """What is wrong with one value of a recipe.

    Args:
        key: Dotted key; "" for the recipe as a whole.
        shown: The value as it is quoted; "" where the key itself is what is wrong.
        wrong: What is wrong, as it follows the key: "must be true or false".
        do: The next action.
    """

    key: str
    shown: str
    wrong: str
    do: str = "correct it; docs/recipes.md lists every key with its range"

    def __str__(self) -> str:
        if self.wrong == _UNKNOWN:
            return f"{_UNKNOWN} {self.key}"
        return (
            f"{self.key or 'the recipe'} is {self.shown}; {self.wrong}"
            if self.shown
            else f"{self.key} {self.wrong}"
        )


_UNKNOWN = "unknown key"


def explain(error: ValidationError, source: str, known: Mapping[str, FieldFacts]) -> BadInput:
    """Pydantic's findings as one line: each field with its value and what is allowed."""
    found = faults(error, known)
    do = next((fault.do for fault in found if fault.wrong == _UNKNOWN), found[-1].do)
    return BadInput(source, ", ".join(dict.fromkeys(map(str, found))), do)


def faults(error: ValidationError, known: Mapping[str, FieldFacts]) -> list[Fault]:
    """Pydantic's findings, one by one."""
    return [_fault(found, known) for found in error.errors(include_url=False)]


def _fault(found: Any, known: Mapping[str, FieldFacts]) -> Fault:
    key = ".".join(part for part in found["loc"] if isinstance(part, str))
    kind: str = found["type"]
    while key not in known and "." in key and kind != "extra_forbidden":
        key = key.rpartition(".")[0]  # an alternative of a union, not a field
    shown = _shown(found["input"])
    if kind == "extra_forbidden":
        return Fault(key, "", _UNKNOWN, suggest(key, list(known)))
    if kind == "missing":
        return Fault(key, "", "is missing")
    if kind == "value_error":
        cause = found.get("ctx", {}).get("error")
        return Fault(key, shown, f"it {cause.wrong}" if isinstance(cause, BadInput) else f"must be {cause}")
    if key in known:
        return Fault(key, shown, f"must be {_allowed(known[key], found)}")
    return Fault(key, shown, "must be a table of keys")


def _allowed(facts: FieldFacts, fault: Any) -> str:
    if facts.kind == "text" and fault["type"] == "string_too_long":
        return f"text of at most {fault['ctx']['max_length']} characters"
    if facts.kind == "text" and fault["type"] == "string_pattern_mismatch":
        return "WIDTHxHEIGHT such as 512x768, or empty"
    if facts.kind == "text" and fault["type"] == "string_too_short":
        return "text that is not empty"
    return facts.allowed


def _shown(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def parse_toml(data: bytes, source: str) -> dict[str, Any]:
    """TOML -> tables.

    Raises:
        BadInput: not UTF-8, not TOML, a key or table given twice (named with its line).
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(source, f"is not UTF-8 text (byte {error.start})", "save it as UTF-8") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        found = re.search(r"at line (\d+)", message)
        line = text.splitlines()[int(found[1]) - 1].strip() if found else ""
        if found and ("overwrite" in message or "twice" in message):
            what = line.partition("=")[0].strip() or line
            raise BadInput(source, f"line {found[1]} gives {what} a second time", "remove one") from error
        raise BadInput(source, f"is not TOML ({_lower(message)})", "correct that line") from error
    except (RecursionError, ValueError) as error:  # ValueError: a number of thousands of digits
        raise BadInput(source, "has a value too deep or too long to read", "correct it") from error


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]


def read_reasons(text: str) -> dict[str, str]:
    """Dotted key -> the comment lines directly above it, or the comment behind it."""
    document = tomlkit.parse(text)
    found: dict[str, str] = {}
    _collect(document.body, "", found)
    return found


def _collect(body: Any, prefix: str, found: dict[str, str]) -> None:
    above: list[str] = []
    for key, item in body:
        if isinstance(item, Comment):
            above.append(item.trivia.comment.lstrip("# ").strip())
        elif isinstance(item, Whitespace):
            above = [] if "\n" in item.s else above
        elif isinstance(item, Table):
            _collect(item.value.body, f"{prefix}{key.key}.", found)
            above = []
        elif key is not None:
            behind = item.trivia.comment.lstrip("# ").strip()
            if above or behind:
                found[prefix + key.key] = " ".join([*above, behind]).strip()
            above = []


def write_toml(table: Mapping[str, Any], comments: Mapping[str, str]) -> str:
    """Tables -> TOML with `comments[dotted key]` above each value; None is written "none"."""
    document = tomlkit.document()
    _write(document, table, comments, "")
    return tomlkit.dumps(document)


def _write(container: Any, table: Mapping[str, Any], comments: Mapping[str, str], prefix: str) -> None:
    for key, value in table.items():
        if isinstance(value, dict) and not prefix:
            section = tomlkit.table()
            _write(section, value, comments, f"{prefix}{key}.")
            container.add(tomlkit.nl()) if not prefix else None
            container.add(key, section)
            continue
        for line in textwrap.wrap(comments.get(prefix + key, ""), 100):
            container.add(tomlkit.comment(line))
        if isinstance(value, dict):
            inline = tomlkit.inline_table()
            inline.update(value)
            value = inline
        container.add(key, "none" if value is None else value)
