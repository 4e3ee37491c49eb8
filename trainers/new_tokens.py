"""New words for the text encoders: a tokenizer that knows them, and input vectors that can learn.

Textual inversion (Gal et al. 2022, "An Image is Worth One Word") learns the vectors alone; pivotal tuning
(Roich et al. 2021, "Pivotal Tuning") an adapter beside them. A word of n vectors stands for n tokens. The
base's own matrix stays as it is: the new rows lie beside it, so that only they learn and are saved.

Only CLIP encoders get new words; a T5 beside them reads the word as it is written.
"""

import copy
import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from registry.errors import BadInput
from trainers.families.base import Family
from trainers.families.common import tokenizer_of
from trainers.plan import draw_seed
from trainers.recipe_dreambooth import TokensSection

KEY = "new_tokens"  # text_encoder.new_tokens.<word>: (n, D) fp32 in an adapter file

Vectors = Mapping[str, Mapping[str, Tensor]]  # word -> text encoder -> (n, D)


class Words:
    """A tokenizer that writes every new word as its n tokens; all else is the tokenizer inside.

    A new word counts where it stands as a word of its own, in any case, as the trigger word does.

    Args:
        inner: A CLIPTokenizer; copied, not changed.
        counts: Word -> how many tokens it stands for.
    """

    def __init__(self, inner: Any, counts: Mapping[str, int]) -> None:
        from tokenizers import AddedToken

        self.plain, self.inner = inner, copy.deepcopy(inner)
        self.first = len(inner)  # id of the first new token
        self.counts = dict(counts)
        self._written = {w.lower(): "".join(f"<|{w}:{i}|>" for i in range(n)) for w, n in counts.items()}
        names = [f"<|{word}:{i}|>" for word, n in counts.items() for i in range(n)]
        self.inner.add_tokens([AddedToken(name, normalized=False, special=True) for name in names])
        assert self.inner.convert_tokens_to_ids(names) == [*range(self.first, self.first + len(names))]
        either = "|".join(re.escape(word) for word in sorted(counts, key=len, reverse=True))
        self._pattern = re.compile(rf"(?<!\w)(?:{either})(?!\w)", re.IGNORECASE)

    @property
    def sizes(self) -> dict[int, int]:
        """How many tokens a word has, by the id of its first one."""
        sizes: dict[int, int] = {}
        for count in self.counts.values():
            sizes[self.first + sum(sizes.values())] = count
        return sizes

    def written(self, text: str) -> str:
        """`text` with every new word as its tokens."""
        return self._pattern.sub(lambda match: self._written[match[0].lower()], text)

    def __call__(self, text: str | list[str], *args: Any, **options: Any) -> Any:
        """As the tokenizer inside."""
        texts = self.written(text) if isinstance(text, str) else [self.written(one) for one in text]
        return self.inner(texts, *args, **options)

    def __len__(self) -> int:
        """How many tokens the base has."""
        return self.first

    def __getattr__(self, name: str) -> Any:
        """All else is the tokenizer inside."""
        return getattr(self.inner, name)


class ExtendedEmbedding(nn.Module):
    """An embedding with rows beside its matrix. To `Trainables.disabled` it is an adapter: switched off, the
    words mean what they meant at the start.

    Args:
        base: The encoder's own, frozen.
        first: Id of the first new token.
        rows: (n, D) of each word, in the order of their ids.
    """

    def __init__(self, base: nn.Embedding, first: int, rows: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.base_layer, self.first = base, first
        self.rows = nn.ParameterList(rows)
        self.start = [row.detach().clone() for row in rows]
        self._disable_adapters = False  # PEFT's name; its layers have it too

    def forward(self, ids: Tensor) -> Tensor:
        """(..., ) int64 -> (..., D) in the dtype of the base."""
        known = self.base_layer(ids.clamp(max=self.first - 1))
        rows = torch.cat(self.start if self._disable_adapters else list(self.rows)).to(known)
        return torch.where(
            (ids >= self.first)[..., None], F.embedding((ids - self.first).clamp(min=0), rows), known
        )


def know_words(family: Family, section: TokensSection) -> None:
    """Let the tokenizers write the recipe's words before there are vectors, so that ids can be cached."""
    if not section.words:
        return
    counts = dict.fromkeys(section.words, section.vectors)
    for name in clip_encoders(family):
        family.put(tokenizer_of(name), Words(family.part(tokenizer_of(name)), counts))


def learn_words(family: Family, section: TokensSection, seed: int) -> dict[str, nn.Parameter]:
    """Give the family the recipe's words; returns what learns, fp32, by its key in the adapter file.

    Raises:
        BadInput: the family's text encoders cannot learn words.
    """
    named: dict[str, nn.Parameter] = {}
    words: dict[str, dict[str, Tensor]] = {word: {} for word in section.words}
    for name in clip_encoders(family):
        tokenizer, table = family.part(tokenizer_of(name)), embedding_of(family.part(name))
        for word, text in zip(section.words, [*section.init, *[""] * len(section.words)], strict=False):
            rows = _start(tokenizer, table, text, section.vectors, draw_seed(seed, "word", name, word))
            named[f"{name}.{KEY}.{word}"] = nn.Parameter(rows)
            words[word][name] = named[f"{name}.{KEY}.{word}"]
    if not named:
        raise BadInput(
            "tokens.words", f"{family.name} has no text encoder that learns words", "leave it empty"
        )
    set_words(family, words)
    return named


def set_words(family: Family, words: Vectors) -> None:
    """Make exactly these words known to the family's tokenizers and text encoders.

    Args:
        family: Loaded; changed in place.
        words: Vectors by word and text encoder. Parameters among them stay the very same objects. Encoders
            that a word says nothing about read it as it is written.

    Raises:
        BadInput: vectors of another width than the encoder's.
    """
    for name in clip_encoders(family):
        encoder, tokenizer = family.part(name), family.part(tokenizer_of(name))
        plain = tokenizer.plain if isinstance(tokenizer, Words) else tokenizer
        here = {word: rows[name] for word, rows in words.items() if name in rows}
        table = embedding_of(encoder)
        for word, rows in here.items():
            if rows.ndim != 2 or rows.shape[1] != table.embedding_dim:
                wrong = f"has vectors of {rows.shape[-1]} values, {name} reads {table.embedding_dim}"
                raise BadInput(f"word {word}", wrong, "use the base it was trained on")
        if not here:
            _place(encoder).token_embedding = table
            family.put(tokenizer_of(name), plain)
            continue
        known = Words(plain, {word: len(rows) for word, rows in here.items()})
        parameters = [_parameter(row, table) for row in here.values()]
        _place(encoder).token_embedding = ExtendedEmbedding(table, known.first, parameters)
        family.put(tokenizer_of(name), known)
        for module in encoder.modules():
            # 2 is an old config's mistake; with it the highest id counts as the end, which now is a new word.
            if getattr(module, "eos_token_id", None) == 2:
                module.eos_token_id = plain.eos_token_id


@contextmanager
def also_known(family: Family, words: Vectors) -> Generator[None]:
    """Meanwhile know these words beside those that are known already, which they go before.

    Raises:
        BadInput: vectors of another width than the encoder's.
    """
    if not words:
        yield
        return
    names = clip_encoders(family)
    tokenizers = {name: family.part(tokenizer_of(name)) for name in names}
    tables = {name: _place(family.part(name)).token_embedding for name in names}
    known: dict[str, dict[str, Tensor]] = {}
    for name, tokenizer in tokenizers.items():
        if isinstance(tokenizer, Words):
            for word, rows in zip(tokenizer.counts, tables[name].rows, strict=True):
                known.setdefault(word, {})[name] = rows
    taken = {word.lower() for word in words}
    try:
        set_words(family, {w: rows for w, rows in known.items() if w.lower() not in taken} | dict(words))
        yield
    finally:
        for name in names:
            _place(family.part(name)).token_embedding = tables[name]
            family.put(tokenizer_of(name), tokenizers[name])


def clip_encoders(family: Family) -> list[str]:
    """Names of the family's text encoders that can learn words."""
    return [name for name in family.text_encoder_names if name in family.clip_encoders]


def embedding_of(encoder: nn.Module) -> nn.Embedding:
    """The encoder's own matrix (V, D), below new words if it has some."""
    table: Any = _place(encoder).token_embedding
    return cast(nn.Embedding, table.base_layer if isinstance(table, ExtendedEmbedding) else table)


def _parameter(row: Tensor, table: nn.Embedding) -> nn.Parameter:
    """The very same one if it is one that learns."""
    if isinstance(row, nn.Parameter):
        return row
    return nn.Parameter(row.to(table.weight.device), requires_grad=False)


def _place(encoder: nn.Module) -> Any:
    """The module that holds the matrix."""
    return next(module for module in encoder.modules() if hasattr(module, "token_embedding"))


def _start(tokenizer: Any, table: nn.Embedding, text: str, count: int, seed: int) -> Tensor:
    """(count, D) fp32: the vectors of `text` in turn; without one random vectors spread like the matrix's."""
    weight = table.weight.detach()
    ids = tokenizer(text, add_special_tokens=False).input_ids if text.strip() else []
    if ids:
        return weight[[ids[i % len(ids)] for i in range(count)]].float().clone()
    noise = torch.randn(count, weight.shape[1], generator=torch.Generator().manual_seed(seed))
    std, mean = torch.std_mean(weight.float(), dim=0)
    return noise.to(weight.device) * std + mean
