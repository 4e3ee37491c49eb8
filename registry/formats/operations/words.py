"""New words of several adapters as one set."""

from collections.abc import Sequence

import numpy as np

from registry.errors import BadInput
from registry.formats.header import shown
from registry.formats.tensors import Array
from registry.formats.words import Words


def united_words(parts: Sequence[tuple[str, Words]]) -> dict[str, dict[str, Array]]:
    """All new words of (adapter, its words).

    Raises:
        BadInput: two adapters mean different things by one word.
    """
    found: dict[str, dict[str, Array]] = {}
    owners: dict[str, str] = {}
    for name, words in parts:
        for word, rows in words.items():
            if word in found and not _same(found[word], dict(rows)):
                wrong = f"is another one in adapter {owners[word]} than in adapter {name}"
                raise BadInput(f"new word {shown(word)}", wrong, "merge adapters whose words differ")
            found[word] = dict(rows)
            owners.setdefault(word, name)
    return found


def _same(one: dict[str, Array], two: dict[str, Array]) -> bool:
    return one.keys() == two.keys() and all(np.array_equal(one[key], two[key]) for key in one)
