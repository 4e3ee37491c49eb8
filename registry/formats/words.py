"""New words of a text encoder (textual inversion) inside adapter files, and as files of their own.

    text_encoder.new_tokens.<word>            in our own files; text_encoder_2 for a second encoder
    bundle_emb.<word>.string_to_param.*       in a kohya LoRA for a family with one encoder (A1111, Forge)
    bundle_emb.<word>.clip_l, .clip_g         the same with several encoders (OneTrainer writes it, too)
    emb_params, or clip_l and clip_g          an embedding file, named after the word (A1111, Forge, ComfyUI)

A tensor is (n, D): n vectors as wide as the encoder's input.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from registry.errors import BadInput
from registry.formats.header import shown
from registry.formats.tensors import Array

OWN, BUNDLE = ".new_tokens.", "bundle_emb."
SINGLE = "string_to_param.*"
SINGLE_FAMILIES = ("sd15", "sd21")  # one encoder, so its vectors need no name
ENCODERS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2", SINGLE: "text_encoder"}
READ = {**ENCODERS, "emb_params": "text_encoder"}
_STARTS = (BUNDLE, "text_encoder")

Words = Mapping[str, Mapping[str, Array]]  # word -> component -> (n, D)


def is_word(key: str) -> bool:
    """Whether a key of an adapter file belongs to a new word."""
    return key.startswith(BUNDLE) or (key.startswith("text_encoder") and OWN in key)


def word_keys(keys: Iterable[str]) -> list[str]:
    """The keys of new words that `split` can read; parts of a bundle may be strange."""
    found = [key for key in keys if key.startswith(_STARTS) and is_word(key)]  # most files have none
    return [k for k in found if not k.startswith(BUNDLE) or k.removeprefix(BUNDLE).partition(".")[2] in READ]


def split(tensors: Mapping[str, Array]) -> tuple[dict[str, dict[str, Array]], dict[str, Array]]:
    """New words, and the tensors of the adapter itself.

    Raises:
        BadInput: a word's tensor is no matrix. Parts of a bundle that we do not know (T5's) stay with the
            rest, where they are reported as not understood.
    """
    words: dict[str, dict[str, Array]] = {}
    rest: dict[str, Array] = {}
    for key, value in tensors.items():
        if not is_word(key):
            rest[key] = value
            continue
        if key.startswith(BUNDLE):
            word, _, part = key.removeprefix(BUNDLE).partition(".")
            component = READ.get(part, "")
            if word and not component:
                rest[key] = value
                continue
        else:
            component, _, word = key.partition(OWN)
        if not component or not word or value.ndim != 2 or not value.size:
            raise BadInput(f"tensor {shown(key)}", "is not the vectors of a word", "see docs/formats.md")
        words.setdefault(word, {})[component] = value
    return words, rest


def own(words: Words) -> dict[str, Array]:
    """The words as our own files have them."""
    return {
        f"{component}{OWN}{word}": rows for word, parts in words.items() for component, rows in parts.items()
    }


def bundle(words: Words, family: str) -> dict[str, Array]:
    """The words as a kohya LoRA carries them."""
    parts = _parts(family)
    return {
        f"{BUNDLE}{word}.{parts[component]}": value
        for word, rows in words.items()
        for component, value in rows.items()
        if component in parts
    }


def embedding(rows: Mapping[str, Array], family: str) -> dict[str, Array]:
    """One word as an embedding file holds it."""
    parts = _parts(family)
    return {
        "emb_params" if parts[name] == SINGLE else parts[name]: value
        for name, value in rows.items()
        if name in parts
    }


def read_embedding(tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Inverse of `embedding`: component -> (n, D)."""
    return {READ.get(key, key): value for key, value in tensors.items()}


def worst_error(ours: Mapping[str, Array], theirs: Mapping[str, Array]) -> float:
    """Largest relative difference of a component's vectors; infinite when one is missing."""
    if ours.keys() != theirs.keys():
        return float("inf")
    return max((_error(value, theirs[name]) for name, value in ours.items()), default=0.0)


def components(words: Words) -> Iterable[str]:
    """Text encoders that get words."""
    return {component for rows in words.values() for component in rows}


def _error(ours: Array, theirs: Array) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    return float(np.abs(ours - theirs).max() / max(float(np.abs(ours).max()), 1e-12))


def _parts(family: str) -> dict[str, str]:
    if family in SINGLE_FAMILIES:
        return {"text_encoder": SINGLE}
    return {component: part for part, component in ENCODERS.items() if part != SINGLE}
