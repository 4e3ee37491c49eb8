"""Foreign text, made fit to be kept: bounded, one kind of spaces, without controls and without markup."""

import re
import unicodedata
from collections.abc import Iterable
from html.parser import HTMLParser
from typing import Any, cast

from registry.errors import BadInput
from registry.files import check_name

LONGEST_NOTE = 4000  # characters
LONGEST_WORD = 200
MOST_WORDS = 50
_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_BREAKS = {"p", "br", "li", "div", "h1", "h2", "h3", "h4", "tr"}


def line(value: Any, limit: int = LONGEST_WORD) -> str:
    """`value` as one line of at most `limit` characters; "" for what is no text or number."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    visible = "".join(" " if unicodedata.category(c) in _INVISIBLE else c for c in str(value)[: limit * 4])
    return " ".join(visible.split())[:limit].strip()


def note(value: Any) -> str:
    """`value` as a note: lines stay, HTML becomes its text."""
    if not isinstance(value, str):
        return ""
    lines = [line(part, LONGEST_NOTE) for part in _unmarked(value).splitlines()]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()[:LONGEST_NOTE]


def words(value: Any) -> tuple[str, ...]:
    """A list of texts, or a text with commas, as words without repeats."""
    parts: Iterable[Any] = value.split(",") if isinstance(value, str) else ()
    if isinstance(value, list | tuple):
        parts = (word for item in cast("list[Any]", value) for word in str(line(item, 2000)).split(","))
    found = dict.fromkeys(word for part in parts if (word := line(part)))
    return tuple(found)[:MOST_WORDS]


def number(value: Any, low: float, high: float) -> float | None:
    """`value` as a number from `low` to `high`; None when it is none."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        parsed = float(value)
    except ValueError:
        return None
    return parsed if low <= parsed <= high else None


def title(value: Any) -> str:
    """`value` as a name that an adapter may have; "" when nothing is left of it."""
    text = line(re.sub(r"[/\\]", " ", _unmarked(value)) if isinstance(value, str) else value, 100)
    for name in (text, f"_{text}"):
        try:
            return check_name(name) if text.strip(". ") else ""
        except BadInput:
            continue
    return ""


def _unmarked(text: str) -> str:
    """The text of what may be HTML."""
    text = text[: LONGEST_NOTE * 4]
    if not re.search(r"</?[a-zA-Z]", text):
        return text
    reader = _Reader()
    reader.feed(text)
    reader.close()
    return "".join(reader.parts)


class _Reader(HTMLParser):
    """The text of a piece of HTML."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        """A new line where the page had one."""
        if tag in _BREAKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        """Text between the tags."""
        self.parts.append(data)
