"""A prompt in A1111's syntax -> `PromptPlan`: which words count how much at which step. Free of torch.

    (x)  (x:1.3)  [x]            more weight (1.1 times), this weight, less weight (1 / 1.1)
    [from:to:when]               the words change at `when`; [to:when] appear, [from::when] go
    [a|b|c]                      another one every step
    a AND b:0.6                  two prompts at once, each with a share of the guidance
    a BREAK b                    b starts a new chunk of the text encoder
    <lora:name:0.8>              an adapter; taken out of the text
    \\(  \\[  \\:  \\|           the sign itself

`when` is a step, or a fraction of the steps when it is below 1 or written with a dot. A bracket without a
partner is plain text. Nothing here is an error, and time grows with the length of the text alone: marks are
kept in one flat list that is read from left to right, however deep the brackets go.

Source: the behaviour of AUTOMATIC1111's web UI; docs/sampling.md lists the differences.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from studio.sampling.prompts.brackets import ROUND, SQUARE, matched
from studio.sampling.prompts.tags import AdapterTag, take_tags

MORE = 1.1  # what a pair of round brackets multiplies by; square ones divide
MOST = 100.0  # weights beyond it, either way, count as it: products of many brackets overflow

_TOKEN = re.compile(r"\\.?|[()\[\]:|]|[^\\()\[\]:|]+", re.DOTALL)
_WEIGHT = re.compile(r"\s*([+-]?(?:\d{1,9}\.?\d{0,9}|\.\d{1,9}))\s*")
_AND = re.compile(r"\bAND\b")
_BREAK = re.compile(r"\bBREAK\b")


@dataclass(frozen=True)
class Piece:
    """Words with one weight; 1 = as they are."""

    text: str
    weight: float = 1.0


Reading = tuple[tuple[Piece, ...], ...]
"""What a text encoder is given: sections that start a chunk each, of pieces one after the other."""


@dataclass(frozen=True)
class Weigh:
    """Multiplies the weight of all up to its end."""

    factor: float


@dataclass(frozen=True)
class Switch:
    """Two options, the first before step `when`, then the second.

    Args:
        when: A step, counted from 0, or a fraction of the steps.
        fraction: Which of the two.
        appears: There is one option only, which comes at `when`.
    """

    when: float
    fraction: bool
    appears: bool = False

    def option(self, number: int, steps: int) -> int:
        """Which option is read at step `number` of `steps`; -1 = none."""
        early = number < min(steps, int(self.when * steps if self.fraction else self.when))
        return (-1 if early else 0) if self.appears else (0 if early else 1)


@dataclass(frozen=True)
class Turns:
    """As many options as `count`, one a step."""

    count: int

    def option(self, number: int, steps: int) -> int:
        """Which option is read at step `number`."""
        del steps
        return number % self.count


class Bound(Enum):
    """What separates words without being one."""

    OR = auto()  # the next option of a Switch or Turns
    END = auto()  # of a Weigh, Switch or Turns
    BREAK = auto()


Mark = str | Weigh | Switch | Turns | Bound


@dataclass(frozen=True)
class Part:
    """One of the prompts that AND joins.

    Args:
        marks: Words and what governs them, from left to right.
        weight: Its share of the guidance.
    """

    marks: tuple[Mark, ...]
    weight: float = 1.0

    @property
    def changes(self) -> bool:
        """Whether steps differ."""
        return any(isinstance(mark, Switch | Turns) for mark in self.marks)

    def at(self, number: int, steps: int) -> Reading:
        """What is read at step `number`, counted from 0, of `steps`."""
        reader = _Reader(number, steps)
        for mark in self.marks:
            reader.take(mark)
        return reader.sections()


@dataclass(frozen=True)
class PromptPlan:
    """What a prompt says.

    Args:
        parts: What AND joins; one without AND.
        tags: Adapters that the text names, in its order.
        text: The text without those tags.
    """

    parts: tuple[Part, ...]
    tags: tuple[AdapterTag, ...] = ()
    text: str = ""

    @property
    def changes(self) -> bool:
        """Whether steps differ."""
        return any(part.changes for part in self.parts)

    def at(self, number: int, steps: int) -> tuple[tuple[Reading, float], ...]:
        """What is read at step `number`, counted from 0, of `steps`, with the share of each part."""
        return tuple((part.at(number, steps), part.weight) for part in self.parts)


def parse(text: str, *, composed: bool = True) -> PromptPlan:
    """The plan of a prompt.

    Args:
        text: Any text at all.
        composed: Whether AND joins prompts; in a negative prompt it is a word.
    """
    plain, tags = take_tags(text)
    parts = _AND.split(plain) if composed else [plain]
    weighted = [_share(part) for part in parts] if len(parts) > 1 else [(plain, 1.0)]
    return PromptPlan(tuple(Part(_marks(part), weight) for part, weight in weighted), tags, plain)


def _share(text: str) -> tuple[str, float]:
    """`text:0.6` -> its text and weight. Only beside an AND: else "16:9" would be a weight."""
    words, colon, number = text.rpartition(":")
    found = _WEIGHT.fullmatch(number) if colon and len(number) < 40 else None
    return (words, _bounded(float(found[1]))) if found else (text, 1.0)


@dataclass
class _Frame:
    """A pair of brackets that is being read.

    Args:
        start: Index of its opening among the marks.
        separators: (mark, token) of each colon and bar directly in it.
    """

    start: int
    separators: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])


def _marks(text: str) -> tuple[Mark, ...]:
    """Words of a text and what governs them."""
    tokens = _TOKEN.findall(text)
    partner = matched(tokens, ROUND | SQUARE)
    marks: list[Mark] = []
    frames: list[_Frame] = []
    for index, token in enumerate(tokens):
        if index in partner and partner[index] > index:
            frames.append(_Frame(len(marks)))
            marks.append(token)
        elif index in partner:
            close = _close_round if token == ")" else _close_square
            close(marks, frames.pop(), tokens, index)
        elif token in (":", "|") and frames:
            frames[-1].separators.append((len(marks), index))
            marks.append(token)
        elif token.startswith("\\"):
            marks.append(token[1:])
        else:
            marks += _with_breaks(token)
    return tuple(marks)


def _with_breaks(text: str) -> list[Mark]:
    first, *others = _BREAK.split(text)
    marks: list[Mark] = [first]
    for other in others:
        marks[-1] = str(marks[-1]).rstrip()
        marks += [Bound.BREAK, other.lstrip()]
    return marks


def _close_round(marks: list[Mark], frame: _Frame, tokens: Sequence[str], index: int) -> None:
    """`(x)` or `(x:1.3)`."""
    factor = MORE
    if frame.separators:
        mark, token = frame.separators[-1]
        number = _number(tokens, token, index)
        if tokens[token] == ":" and number is not None:
            factor = _bounded(number)
            del marks[mark:]
    marks[frame.start] = Weigh(factor)
    marks.append(Bound.END)


def _close_square(marks: list[Mark], frame: _Frame, tokens: Sequence[str], index: int) -> None:
    """`[a|b]`, `[from:to:when]`, `[to:when]` or `[x]`."""
    bars = [mark for mark, token in frame.separators if tokens[token] == "|"]
    if bars:
        marks[frame.start] = Turns(len(bars) + 1)
        for mark in bars:
            marks[mark] = Bound.OR
    elif frame.separators and _number(tokens, frame.separators[-1][1], index) is not None:
        last, token = frame.separators[-1]
        when = float(tokens[token + 1])
        fraction = when < 1 or "." in tokens[token + 1]
        appears = len(frame.separators) == 1
        del marks[last:]
        marks[frame.start] = Switch(when, fraction, appears)
        if not appears:
            marks[frame.separators[-2][0]] = Bound.OR
    else:
        marks[frame.start] = Weigh(1 / MORE)
    marks.append(Bound.END)


def _number(tokens: Sequence[str], separator: int, close: int) -> float | None:
    """The number that alone stands between a separator and a closing bracket."""
    if close - separator != 2:
        return None
    found = _WEIGHT.fullmatch(tokens[separator + 1])
    return float(found[1]) if found else None


def _bounded(weight: float) -> float:
    return math.copysign(min(abs(weight), MOST), weight)


class _Reader:
    """Marks from left to right -> what is read at one step."""

    def __init__(self, number: int, steps: int) -> None:
        self._number, self._steps = number, steps
        self._weights = [1.0]
        self._options: list[
            tuple[int, int] | None
        ] = []  # of each open mark: (chosen, current); None: a Weigh
        self._hidden = 0  # open marks of which another option is read
        self._sections: list[list[tuple[list[str], float]]] = [[]]

    def take(self, mark: Mark) -> None:
        """Read one mark."""
        if isinstance(mark, str):
            self._say(mark)
        elif isinstance(mark, Weigh):
            self._options.append(None)
            self._weights.append(_bounded(self._weights[-1] * mark.factor))
        elif isinstance(mark, Switch | Turns):
            self._open(mark.option(self._number, self._steps), 0)
        elif mark is Bound.BREAK:
            if not self._hidden:
                self._sections.append([])
        else:
            self._leave(go_on=mark is Bound.OR)

    def sections(self) -> Reading:
        """What was read; a break at the very end opens no section."""
        read = tuple(
            tuple(Piece("".join(words), weight) for words, weight in section) for section in self._sections
        )
        return read[:-1] if len(read) > 1 and not read[-1] else read

    def _say(self, words: str) -> None:
        if self._hidden or not words:
            return
        section, weight = self._sections[-1], self._weights[-1]
        if section and section[-1][1] == weight:
            section[-1][0].append(words)
        else:
            section.append(([words], weight))

    def _open(self, chosen: int, current: int) -> None:
        self._options.append((chosen, current))
        self._hidden += chosen != current

    def _leave(self, *, go_on: bool) -> None:
        option = self._options.pop()
        if option is None:
            self._weights.pop()
            return
        chosen, current = option
        self._hidden -= chosen != current
        if go_on:
            self._open(chosen, current + 1)
