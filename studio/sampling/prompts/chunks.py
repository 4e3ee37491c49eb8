"""Token ids and their weights, in the portions that a text encoder reads.

CLIP reads 77 tokens, start and end included. For bases that read CLIP alone a longer prompt becomes several
chunks of 75, each with a start and an end of its own, whose outputs are joined; a chunk ends at the last
comma when that is among its last 20 tokens. Bases with a T5 read one portion with each encoder; what is
longer is cut.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from studio.sampling.prompts.parse import Piece, Reading
from trainers.families.common import TextToImage, tokenizer_of
from trainers.new_tokens import Words

BACKTRACK = 20  # tokens behind the last comma that may move into the next chunk


@dataclass(frozen=True)
class Chunk:
    """One portion; ids and weights are of one length."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]


def chunked(family: TextToImage) -> bool:
    """Whether a base reads prompts of any length."""
    return not family.t5_encoder


def chunks_of(family: TextToImage, text_encoder: str, reading: Reading) -> list[Chunk]:
    """The portions of a prompt for one text encoder; at least one."""
    frame = _Frame.of(family.part(tokenizer_of(text_encoder)), family.length_of(text_encoder))
    sections = [list(frame.words(section)) for section in reading]
    if chunked(family):
        return [frame.chunk(words) for section in sections for words in _portions(section, frame)]
    flat = [word for section in sections for word in section]
    return [frame.chunk(flat)]


def cut_from(family: TextToImage, reading: Reading) -> int:
    """Tokens that the encoder which reads longest will not see."""
    if chunked(family):
        return 0
    reader = family.text_encoder_names[-1]
    frame = _Frame.of(family.part(tokenizer_of(reader)), family.length_of(reader))
    return max(0, sum(len(word.ids) for section in reading for word in frame.words(section)) - frame.room)


@dataclass(frozen=True)
class _Word:
    """Tokens that stay together: one, or all of a new word."""

    ids: tuple[int, ...]
    weight: float
    comma: bool = False


@dataclass(frozen=True)
class _Frame:
    """What stands around the tokens of a portion.

    Args:
        tokenizer: Of the encoder.
        length: Of a portion.
        head, tail: Ids before and behind the tokens.
        pad: Id that fills the rest.
    """

    tokenizer: Any
    length: int
    head: tuple[int, ...]
    tail: tuple[int, ...]
    pad: int

    @classmethod
    def of(cls, tokenizer: Any, length: int) -> "_Frame":
        """CLIP has a start and an end, T5 only an end."""
        empty = tuple(tokenizer("").input_ids)
        return cls(tokenizer, length, empty[:-1], empty[-1:], int(tokenizer.pad_token_id))

    @property
    def room(self) -> int:
        """Tokens of the text that fit."""
        return self.length - len(self.head) - len(self.tail)

    def words(self, section: tuple[Piece, ...]) -> Iterator[_Word]:
        """Pieces are read one by one, as A1111 does: a weight within a word divides it."""
        commas = set(self.tokenizer(",", add_special_tokens=False).input_ids)
        sizes: dict[int, int] = self.tokenizer.sizes if isinstance(self.tokenizer, Words) else {}
        for piece in section:
            ids = self.tokenizer(piece.text, add_special_tokens=False, verbose=False).input_ids
            at = 0
            while at < len(ids):
                size = sizes.get(ids[at], 1)
                yield _Word(tuple(ids[at : at + size]), piece.weight, comma=ids[at] in commas)
                at += size

    def chunk(self, words: list[_Word]) -> Chunk:
        """A portion, filled up; what does not fit is cut."""
        ids = [id for word in words for id in word.ids][: self.room]
        weights = [word.weight for word in words for _ in word.ids][: self.room]
        ids = [*self.head, *ids, *self.tail]
        before, behind = len(self.head), self.length - len(self.head) - len(weights)
        ids += [self.pad] * (self.length - len(ids))
        return Chunk(tuple(ids), (*[1.0] * before, *weights, *[1.0] * behind))


def _portions(words: list[_Word], frame: _Frame) -> Iterator[list[_Word]]:
    """The words of a section in portions that fit."""
    portion: list[_Word] = []
    used = 0
    comma = -1  # words up to and with the last comma
    for word in words:
        if used == frame.room and not word.comma and comma >= 0:
            behind = portion[comma:]
            if (moved := sum(len(one.ids) for one in behind)) < BACKTRACK:
                yield portion[:comma]
                portion, used, comma = behind, moved, -1
        if used + len(word.ids) > frame.room:
            if portion:
                yield portion
            portion, used, comma = [], 0, -1
        portion.append(word)
        used += len(word.ids)
        if word.comma:
            comma = len(portion)
    yield portion
