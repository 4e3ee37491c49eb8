"""Tokenizers made of the grammar's words and some everyday ones; any text tokenises.

CLIP's: byte-pair encoding as in Sennrich et al. 2016, on bytes as in GPT-2. The grammar's words become one
token each; everyday words share what pieces 300 further merges give. T5's: a unigram model (Kudo 2018) whose
pieces are whole words, for everything else single letters; what is outside Latin-1 is unknown to it, as most
of the world's letters are to the real one.
"""

import itertools
from collections import Counter
from collections.abc import Iterable
from typing import Any

from transformers.models.clip.tokenization_clip import CLIPTokenizer
from transformers.models.t5.tokenization_t5 import T5Tokenizer

from studio.pocket.grammar import COLOURS, COUNT_WORDS, FILLERS, POSITIONS, SIZES, TEXTURES
from studio.pocket.shapes import SHAPES
from studio.pocket.stray import EVERYDAY

LENGTH = 77  # tokens, as CLIP
T5_LENGTH = 64  # enough for any caption; each further one costs attention in every block
WORD_SCORE, LETTER_SCORE = -3.0, -10.0  # log probabilities: a word beats its letters
WORD_START = "\u2581"  # what T5 puts before a word
EVERYDAY_MERGES = 300
GRAMMAR_WEIGHT = 100  # a grammar word counts as often as so many everyday ones
END_OF_WORD = "</w>"

Merge = tuple[str, str]


def make_tokenizer(**options: Any) -> CLIPTokenizer:
    """CLIP's tokenizer; always the same, about 760 tokens.

    Args:
        options: Such as `pad_token`, which second tokenizers have at "!".
    """
    alphabet = byte_alphabet()
    grammar, everyday = _grammar_words(), set(EVERYDAY)
    weights = Counter(dict.fromkeys(grammar, GRAMMAR_WEIGHT))
    weights.update(everyday)
    merges = learn_merges(weights, alphabet)
    letters = list(alphabet.values())
    tokens = letters + [letter + END_OF_WORD for letter in letters] + [left + right for left, right in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    settings: dict[str, Any] = {"vocab": vocabulary, "merges": merges, "model_max_length": LENGTH}
    return CLIPTokenizer(**settings, **options)


def make_t5_tokenizer() -> T5Tokenizer:
    """T5's tokenizer; always the same, about 600 tokens with the 100 sentinels that T5 has."""
    letters = [chr(code) for code in (*range(0x21, 0x7F), *range(0xA1, 0x100))]
    words = sorted(_grammar_words() | set(EVERYDAY))
    pieces: list[tuple[str, float]] = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(piece, LETTER_SCORE) for piece in (WORD_START, *letters)]
    pieces += [(WORD_START + word, WORD_SCORE) for word in words]
    settings: dict[str, Any] = {"vocab": pieces, "extra_ids": 100, "model_max_length": T5_LENGTH}
    return T5Tokenizer(**settings)


def byte_alphabet() -> dict[int, str]:
    """A printable character for each of the 256 bytes (the table of GPT-2 that CLIP took over)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = (byte for byte in range(256) if byte not in printable)
    table = {byte: chr(byte) for byte in printable}
    return table | {byte: chr(256 + place) for place, byte in enumerate(hidden)}


def learn_merges(weights: Counter[str], alphabet: dict[int, str]) -> list[Merge]:
    """Merges in the order learnt: the most frequent pair first, ties by the later in the alphabet.

    Ends when no pair occurs twice, or when `EVERYDAY_MERGES` pairs were merged that no grammar word needs.
    """
    words = {word: _letters(word, alphabet) for word in weights}
    merges: list[Merge] = []
    left = EVERYDAY_MERGES
    while True:
        pairs: Counter[Merge] = Counter()
        for word, pieces in words.items():
            for pair in itertools.pairwise(pieces):
                pairs[pair] += weights[word]
        if not pairs:
            return merges
        best, count = max(pairs.items(), key=lambda item: (item[1], item[0]))
        left -= count < GRAMMAR_WEIGHT
        if count < 2 or left < 0:
            return merges
        merges.append(best)
        words = {word: _merged(pieces, best) for word, pieces in words.items()}


def _letters(word: str, alphabet: dict[int, str]) -> list[str]:
    letters = [alphabet[byte] for byte in word.encode()]
    return [*letters[:-1], letters[-1] + END_OF_WORD]


def _merged(pieces: list[str], pair: Merge) -> list[str]:
    out: list[str] = []
    for piece in pieces:
        # A piece made by this merge is longer than either half, so it cannot be mistaken for a left half.
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out


def _grammar_words() -> set[str]:
    phrases: Iterable[str] = (
        *COUNT_WORDS.values(), *COLOURS, *SHAPES, *(shape + "s" for shape in SHAPES), "crosses", *TEXTURES,
        *SIZES, *POSITIONS, *FILLERS, "an", "background", "with",
    )  # fmt: skip
    return {word for phrase in phrases for word in phrase.split()}
