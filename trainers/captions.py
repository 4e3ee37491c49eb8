"""Which words go with a picture: alternatives, tags in another order, tags left out. No torch.

A caption has finitely many versions, so that each is encoded once: its lines, and of a line in which
anything is drawn `data.caption_variants` versions. A version is a pure function of (seed, picture, line,
number), which version is shown one of (seed, epoch, item, copy).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from trainers.plan import Item, draw, final_caption
from trainers.recipe_fields import DataSection
from trainers.rundir import ManifestItem

_BRACES = re.compile(r"\{([^{}]*\|[^{}]*)\}")


@dataclass(frozen=True)
class Wording:
    """The versions of one caption.

    Args:
        caption: As written, with its lines.
        identity: What names the picture in every draw: its pixel hash, so that order does not matter.
        data: The section of the recipe.
        seed: train.seed.
    """

    caption: str
    identity: str
    data: DataSection
    seed: int

    @property
    def lines(self) -> tuple[str, ...]:
        """The alternatives; one, the whole text, when data.variations is off."""
        if not self.data.variations:
            return (" ".join(self.caption.split()),)
        lines = (" ".join(line.split()) for line in self.caption.splitlines())
        return tuple(line for line in lines if line) or ("",)

    def varies(self, line: str) -> bool:
        """Whether anything in a line is drawn."""
        data = self.data
        if data.variations and _BRACES.search(line):
            return True
        tags = line.count(data.caption_separator) > 0 or bool(
            data.keep_separator and data.keep_separator in line
        )
        return tags and (data.shuffle_tags or data.tag_dropout > 0)

    def versions(self) -> tuple[str, ...]:
        """All of them as the text encoder gets them; the same text may come twice."""
        return tuple(
            self.version(line, number)
            for line in range(len(self.lines))
            for number in range(self._count(self.lines[line]))
        )

    def shown(self, chance: float) -> str:
        """The version that a draw in [0, 1) means: lines alike, then a line's versions alike."""
        lines = self.lines
        place = chance * len(lines)
        line = int(place)
        return self.version(line, int((place - line) * self._count(lines[line])))

    def version(self, line: int, number: int) -> str:
        """One version of a line, `number` below data.caption_variants."""
        data, text = self.data, self.lines[line]
        place = (self.identity, line, number)
        if data.variations:
            text = self._choose(text, place)
        if data.keep_separator and data.keep_separator in text:
            head, middle, tail = self._parts(text)
            text = self._join([*head, *self._mix(middle, place), *tail])
        elif data.caption_separator in text and (data.shuffle_tags or data.tag_dropout):
            tags = self._tags(text)
            text = self._join([*tags[: data.keep_tokens], *self._mix(tags[data.keep_tokens :], place)])
        return final_caption(text, data.trigger, data.class_word)

    def _count(self, line: str) -> int:
        return self.data.caption_variants if self.varies(line) else 1

    def _choose(self, text: str, place: tuple[str, int, int]) -> str:
        """`{a|b}` -> a or b, innermost first."""
        turn = 0
        while match := _BRACES.search(text):
            options = match[1].split("|")
            chosen = options[int(draw(self.seed, "braces", *place, turn) * len(options))].strip()
            text = text[: match.start()] + chosen + text[match.end() :]
            turn += 1
        return " ".join(text.split())

    def _parts(self, text: str) -> tuple[list[str], list[str], list[str]]:
        """Tags that stay in front, tags that move, tags that stay behind."""
        head, _, rest = text.partition(self.data.keep_separator)
        middle, _, tail = rest.partition(self.data.keep_separator)
        return self._tags(head), self._tags(middle), self._tags(tail)

    def _tags(self, text: str) -> list[str]:
        return [tag.strip() for tag in text.split(self.data.caption_separator) if tag.strip()]

    def _mix(self, tags: list[str], place: tuple[str, int, int]) -> list[str]:
        data, seed = self.data, self.seed
        kept = [
            (draw(seed, "shuffle", *place, turn) if data.shuffle_tags else 0.0, turn, tag)
            for turn, tag in enumerate(tags)
            if not data.tag_dropout or draw(seed, "tag", *place, turn) >= data.tag_dropout
        ]
        return [tag for _, _, tag in sorted(kept)]

    def _join(self, tags: list[str]) -> str:
        separator = self.data.caption_separator
        return (separator if separator[-1].isspace() else f"{separator} ").join(tags)


def wording(source: ManifestItem, data: DataSection, seed: int) -> Wording:
    """The versions of a picture's caption; the trigger word belongs to pictures that teach, not to priors."""
    if source.role:
        data = data.model_copy(update={"trigger": "", "class_word": ""})
    return Wording(source.caption, source.pixel_hash, data, seed)


def shown_caption(item: Item, copy: int, *, data: DataSection, seed: int, epoch: int) -> str:
    """Caption of one showing: a version, or empty when its draw falls below data.caption_dropout."""
    if draw(seed, "caption", epoch, item.index, copy) < data.caption_dropout:
        return ""
    return wording(item.source, data, seed).shown(draw(seed, "version", epoch, item.index, copy))


def captions_needed(items: Iterable[Item], data: DataSection, seed: int) -> list[str]:
    """Every caption the run can meet, sorted; the empty one always, because dropout needs it."""
    sources = {(item.source.pixel_hash, item.source.caption): item.source for item in items}
    found = {version for source in sources.values() for version in wording(source, data, seed).versions()}
    return sorted({"", *found})
