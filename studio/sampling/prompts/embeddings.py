"""Embedding files (textual inversion): `embeddings/NAME.safetensors` in the workspace; NAME is the word.

The files of A1111, Forge and ComfyUI: `emb_params` (n, D), or `clip_l` and `clip_g` for two encoders. Pickles
(.pt, .bin) are never opened. Free of torch.
"""

import re
from pathlib import Path

import numpy as np

from registry.errors import BadInput
from registry.formats import words
from registry.formats.header import read_header, shown
from registry.formats.tensors import Array, read_tensors

FOLDER = "embeddings"  # in the workspace
MOST_VECTORS = 75  # of one word: what CLIP reads at once
_PICKLES = {".pt", ".bin", ".pth", ".ckpt"}


def embedding_files(folder: Path) -> dict[str, Path]:
    """Embedding files by lower-case name; of two of one name the first path counts."""
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.safetensors")):
        files.setdefault(path.stem.lower(), path)
    return files


def named_in(texts: list[str], folder: Path) -> dict[str, Path]:
    """Files whose name stands as a word of its own in one of the texts.

    Raises:
        BadInput: a named file is a pickle only.
    """
    if not folder.is_dir():
        return {}
    files = embedding_files(folder)
    text = "\n".join(texts)
    said = {name: path for name, path in files.items() if _stands_in(name, text)}
    for path in sorted(folder.rglob("*")):
        if path.suffix in _PICKLES and path.stem.lower() not in files and _stands_in(path.stem, text):
            wrong = "is a pickle, which can run code, and is not opened"
            raise BadInput(f"embedding {path.name}", wrong, "convert it to .safetensors")
    return said


def read_embedding(path: Path) -> dict[str, Array]:
    """Vectors of an embedding file: text encoder -> (n, D) float32.

    Raises:
        BadInput: the file is unsound, or is no embedding.
    """
    header = read_header(path)
    known = {name: info for name, info in header.tensors.items() if name in words.READ}
    if not known or len(known) < len(header.tensors):
        odd = next((name for name in header.tensors if name not in words.READ), "")
        wrong = f"is no embedding: it has {shown(odd)}" if odd else "is no embedding: it is empty"
        raise BadInput(str(path), wrong, "files hold emb_params, or clip_l and clip_g")
    for name, info in known.items():
        if len(info.shape) > 2 or not 0 < (info.shape[0] if len(info.shape) == 2 else 1) <= MOST_VECTORS:
            raise BadInput(
                str(path), f"{shown(name)} is not the vectors of a word (at most {MOST_VECTORS})", ""
            )
    return words.read_embedding(
        {name: np.atleast_2d(value) for name, value in read_tensors(path, header).items()}
    )


def _stands_in(name: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE) is not None
