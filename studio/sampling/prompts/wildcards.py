"""Choices by chance in a prompt, out of braces and files; made once, by a seed. Free of torch.

    __name__, __folder/name__     a line of wildcards/name.txt
    {a|b|c}                       one of them; {3::a|b} takes a three times as often as b
    {2$$a|b|c}, {1-3$$...}        so many of them, each once, joined by ", "; {2$$ and $$a|b|c} by " and "
    \\{  \\_                      the sign itself

Lines of files may hold choices themselves, and weights as `3::line`; empty ones and those that start with #
are no choices. A brace without a partner is plain text.
"""

import difflib
import random
import re
from dataclasses import dataclass, field
from pathlib import Path

from registry.errors import BadInput
from studio.sampling.prompts.brackets import CURLY, ROUND, SQUARE, matched

FOLDER = "wildcards"  # in the workspace
LONGEST = 10_000  # characters of a resolved prompt, as of one that is written
DEEPEST = 24  # choices within choices, those of files included
MOST_CHOICES = 2_000  # made for one prompt: files that name each other could go on for ever
MAX_FILE = 8 << 20  # bytes
_MANY_FILES = 10_000  # of which near names are looked for

_NAME = r"[^\W_](?:[\w\-. ]|/(?!/)){0,98}?"
_TOKEN = re.compile(rf"\\.?|__(?:{_NAME})__|[(){{}}\[\]|]|[^\\(){{}}\[\]|_]+|_", re.DOTALL)
_WILD = re.compile(rf"__({_NAME})__")
_COUNT = re.compile(r"\s*(\d{1,2})(?:-(\d{1,2}))?\$\$(?:([^$]{0,40})\$\$)?")
_WEIGHT = re.compile(r"\s*(\d{1,6}(?:\.\d{1,6})?)::")


class Wildcards:
    """The files of a folder.

    Args:
        folder: Read when a prompt asks for a file.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lines: dict[str, list[str]] = {}

    def names(self) -> list[str]:
        """All names there are."""
        files = sorted(self._folder.rglob("*.txt"))[:_MANY_FILES]
        return [file.relative_to(self._folder).with_suffix("").as_posix() for file in files]

    def lines(self, name: str) -> list[str]:
        """The choices of a file.

        Raises:
            BadInput: there is no such file, it is empty, too large or no text; one line, with near names.
        """
        if name not in self._lines:
            self._lines[name] = self._read(name)
        return self._lines[name]

    def _read(self, name: str) -> list[str]:
        if any(part in ("", ".", "..") or part.startswith(".") for part in name.split("/")):
            raise BadInput(f"wildcard __{name}__", "is not a name", "write __name__ or __folder/name__")
        path = self._folder / f"{name}.txt"
        try:
            if path.stat().st_size > MAX_FILE:
                raise BadInput(str(path), f"is larger than {MAX_FILE >> 20} MiB", "divide it")
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadInput(str(path), "is not UTF-8 text", "save it as UTF-8") from error
        except OSError as error:
            raise self._missing(name) from error
        lines = [line.strip() for line in text.splitlines()]
        lines = [line for line in lines if line and not line.startswith("#")]
        if not lines:
            raise BadInput(str(path), "has no choices", "write one on each line")
        return lines

    def _missing(self, name: str) -> BadInput:
        names = self.names()
        near = difflib.get_close_matches(name, names, 3, 0.5)
        if near:
            do = f"did you mean {' or '.join(f'__{one}__' for one in near)}"
        elif names:
            do = f"there is {', '.join(f'__{one}__' for one in names[:5])}"
        else:
            do = f"put {name}.txt into {self._folder}, one choice a line"
        return BadInput(f"wildcard __{name}__", "has no file", do)


def has_choices(text: str) -> bool:
    """Whether a prompt holds anything that chance decides."""
    tokens = _TOKEN.findall(text)
    return any(_WILD.fullmatch(token) for token in tokens) or bool(matched(tokens, CURLY))


def resolve(text: str, seed: int | str, wildcards: Wildcards) -> str:
    """The prompt that a seed makes of a template; the same on every machine and version.

    Raises:
        BadInput: a file is missing, choices lie too deep, or the result is too long.
    """
    if not has_choices(text):
        return text
    chooser = _Chooser(random.Random(seed), wildcards)
    made = chooser.resolve(text, 0)
    if len(made) > LONGEST:
        raise BadInput("prompt", f"has {len(made)} characters once its choices are made", "shorten it")
    return made


@dataclass
class _Group:
    """A pair of braces.

    Args:
        options: Ranges of tokens.
        weights: How often each is taken.
        low, high: How many are taken.
        joint: What stands between several.
    """

    options: list[tuple[int, int]]
    weights: list[float] = field(default_factory=list[float])
    low: int = 1
    high: int = 1
    joint: str = ", "


@dataclass
class _Chooser:
    """Makes the choices of one prompt in the order of its text."""

    chance: random.Random
    wildcards: Wildcards
    made: int = 0
    length: int = 0  # characters out of files

    def resolve(self, text: str, depth: int) -> str:
        """`text` with its choices made."""
        tokens = _TOKEN.findall(text)
        for token in tokens:
            if name := _WILD.fullmatch(token):
                self.wildcards.lines(name[1])  # also of options that are not taken: chance hides no fault
        return _Text(self, tokens).read(0, len(tokens), depth)

    def count(self, depth: int) -> None:
        """One more choice is made.

        Raises:
            BadInput: too many, or too deep.
        """
        self.made += 1
        if depth > DEEPEST or self.made > MOST_CHOICES:
            wrong = f"go deeper than {DEEPEST}" if depth > DEEPEST else f"are more than {MOST_CHOICES}"
            raise BadInput("prompt", f"its choices {wrong}", "look for wildcards that name each other")

    def several(self, weights: list[float], low: int, high: int) -> list[int]:
        """Between `low` and `high` different indices, each as often as its weight says.

        Only `random()` is the same in every version of Python.
        """
        wanted = min(low, high) + int(self.chance.random() * (abs(high - low) + 1))
        left = {index: weight for index, weight in enumerate(weights) if weight > 0}
        taken: list[int] = []
        while left and len(taken) < wanted:
            mark = self.chance.random() * sum(left.values())
            chosen = next(reversed(left))  # unless rounding leaves a rest, found below
            for index, weight in left.items():
                mark -= weight
                if mark < 0:
                    chosen = index
                    break
            taken.append(chosen)
            del left[chosen]
        return taken

    def line(self, name: str, depth: int) -> str:
        """A line of a file, with its own choices made."""
        return self.lines(name, 1, 1, "", depth)

    def lines(self, name: str, low: int, high: int, joint: str, depth: int) -> str:
        """Several different lines of a file."""
        self.count(depth)
        lines = self.wildcards.lines(name)
        heads = [_WEIGHT.match(line) for line in lines]
        taken = self.several([float(head[1]) if head else 1.0 for head in heads], low, high)
        texts = [lines[i][head.end() if (head := heads[i]) else 0 :] for i in taken]
        self.length += sum(map(len, texts))
        if self.length > 20 * LONGEST:  # before lines of megabytes are read on
            raise BadInput(f"wildcard __{name}__", f"makes a prompt longer than {LONGEST} characters", "")
        return joint.join(self.resolve(text, depth) for text in texts)


class _Text:
    """One text that is being read; its braces are matched once."""

    def __init__(self, chooser: _Chooser, tokens: list[str]) -> None:
        self._chooser, self._tokens = chooser, tokens
        self._partner = matched(tokens, CURLY | ROUND | SQUARE)
        self._groups = self._find_groups()

    def read(self, start: int, end: int, depth: int) -> str:
        """Tokens [start, end) with their choices made."""
        read: list[str] = []
        index = start
        while index < end:
            token = self._tokens[index]
            if index in self._groups:
                read.append(self._choose(self._groups[index], depth + 1))
                index = self._partner[index] + 1
                continue
            name = _WILD.fullmatch(token)
            read.append(self._chooser.line(name[1], depth + 1) if name else token)
            index += 1
        return "".join(read)

    def _choose(self, group: _Group, depth: int) -> str:
        self._chooser.count(depth)
        (start, end), *others = group.options
        words = [token for token in self._tokens[start:end] if token.strip()]
        if not others and len(words) == 1 and (name := _WILD.fullmatch(words[0])):
            return self._chooser.lines(name[1], group.low, group.high, group.joint, depth + 1)
        taken = self._chooser.several(group.weights, group.low, group.high)
        return group.joint.join(self.read(*group.options[index], depth).strip() for index in taken)

    def _find_groups(self) -> dict[int, _Group]:
        """Braces by their opening token; bars within other brackets belong to those."""
        groups: dict[int, _Group] = {}
        around: list[int] = []
        for index, token in enumerate(self._tokens):
            if token == "|" and around and around[-1] in groups:
                options = groups[around[-1]].options
                options[-1] = (options[-1][0], index)
                options.append((index + 1, index + 1))
            elif index in self._partner and self._partner[index] > index:
                around.append(index)
                if token == "{":
                    groups[index] = _Group([(index + 1, index + 1)])
            elif index in self._partner:
                group = groups.get(around.pop())
                if group is not None:
                    group.options[-1] = (group.options[-1][0], index)
                    self._take_heads(group)
        return groups

    def _take_heads(self, group: _Group) -> None:
        """Counts and weights leave the tokens."""
        for number, (start, end) in enumerate(group.options):
            if number == 0 and start < end and (count := _COUNT.match(self._tokens[start])):
                group.low, group.high = int(count[1]), int(count[2] or count[1])
                group.joint = ", " if count[3] is None else count[3]
                self._tokens[start] = self._tokens[start][count.end() :]
            head = _WEIGHT.match(self._tokens[start]) if start < end else None
            group.weights.append(float(head[1]) if head else 1.0)
            if head:
                self._tokens[start] = self._tokens[start][head.end() :]
