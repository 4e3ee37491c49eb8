"""Captions counted by the base's own tokenizers, without torch: the `tokenizers` library alone.

A folder has tokenizer.json, or CLIP's older vocab.json and merges.txt. Where neither can be read (a hub id, a
T5 with nothing but a sentencepiece model) there is no reader, and the doctor counts words instead.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry.records import Base
from trainers.families import FAMILIES

if TYPE_CHECKING:
    from studio.workspace import Workspace
    from trainers.recipe import Recipe

CLIP_TOKENS, T5_TOKENS = 77, 512  # with the marks of beginning and end
USUAL = 0.3  # the first part of a vocabulary, sorted by how often words are met
_CLIP_PIECES = (
    r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
)


@dataclass(frozen=True)
class Reader:
    """One text encoder's tokenizer.

    Args:
        name: "tokenizer", "tokenizer_2".
        limit: Tokens that its encoder reads, with the marks of beginning and end.
        tokenizer: `tokenizers.Tokenizer`.
    """

    name: str
    limit: int
    tokenizer: Any

    def count(self, text: str) -> int:
        """Tokens of a text, with the marks of beginning and end."""
        return len(self.tokenizer.encode(text).ids)

    def whole_word(self, word: str) -> float | None:
        """How rare a word is that the vocabulary has as one token: 0 = the commonest, 1 = the rarest."""
        ids = self.tokenizer.encode(word, add_special_tokens=False).ids
        size = self.tokenizer.get_vocab_size()
        return ids[0] / size if len(ids) == 1 else None


def readers_of(ws: "Workspace", base: Base, recipe: "Recipe | None" = None) -> list[Reader]:
    """Tokenizers of a base that can be read here, in the order of its text encoders."""
    if base.kind == "hub":
        return []
    folder = ws.resolve(base.config or base.location)
    info = FAMILIES[base.family]
    asked = recipe.data.text_length if recipe is not None else 0
    found: list[Reader] = []
    for part, encoder in zip(info.tokenizers, info.text_encoders, strict=True):
        t5 = encoder == info.t5 or (info.flow and encoder == info.text_encoders[-1])
        loaded = _load(folder / part)
        if loaded is not None:
            own = _limit(folder / part)
            limit = (asked or min(own or T5_TOKENS, T5_TOKENS)) if t5 else CLIP_TOKENS
            found.append(Reader(part, limit, loaded))
    return found


def longest(ws: "Workspace", base: Base, readers: list[Reader]) -> Reader | None:
    """The reader of the encoder that reads most; None when it cannot be read here."""
    info = FAMILIES[base.family]
    there = {reader.name: reader for reader in readers}
    always = [name for name in info.tokenizers if name not in info.optional]
    has_last = (
        base.kind != "hub" and (ws.resolve(base.config or base.location) / info.tokenizers[-1]).is_dir()
    )
    last = info.tokenizers[-1] if has_last else always[-1]
    return there.get(last)


def _load(folder: Path) -> Any:
    """A `tokenizers.Tokenizer` that neither cuts nor pads; None when there is nothing to read."""
    whole, vocabulary = folder / "tokenizer.json", folder / "vocab.json"
    chosen = whole if whole.is_file() else vocabulary
    try:
        return _loaded(chosen, chosen.stat().st_mtime_ns)
    except OSError:
        return None


@lru_cache(maxsize=16)
def _loaded(path: Path, _changed: int) -> Any:
    from tokenizers import Tokenizer

    try:
        tokenizer: Any = Tokenizer.from_file(str(path)) if path.name == "tokenizer.json" else _clip(path)
    except Exception:  # noqa: BLE001 - the library raises bare Exception; what it cannot read is not read
        return None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _clip(vocabulary: Path) -> Any:
    """CLIP's tokenizer from vocab.json and merges.txt, as `CLIPTokenizerFast` is put together."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    merges = str(vocabulary.with_name("merges.txt"))
    begin, end = "<|startoftext|>", "<|endoftext|>"
    bpe: Any = models.BPE.from_file(str(vocabulary), merges, end_of_word_suffix="</w>", unk_token=end)
    tokenizer: Any = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    ids = (end, tokenizer.token_to_id(end)), (begin, tokenizer.token_to_id(begin))
    tokenizer.post_processor = processors.RobertaProcessing(*ids, trim_offsets=False, add_prefix_space=False)
    return tokenizer


def _limit(folder: Path) -> int:
    """model_max_length of a tokenizer's config; 0 when it says none (or "very much")."""
    try:
        said = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        limit = int(said.get("model_max_length", 0))
    except (OSError, ValueError, TypeError, AttributeError):
        return 0
    return limit if limit < 100_000 else 0
