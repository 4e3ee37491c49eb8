"""Tiny real base models, saved as diffusers folders."""

import json
from pathlib import Path
from typing import Any

from trainers.families import FAMILIES


def save_base(family: str, folder: Path, seed: int = 0) -> Path:
    """`FAMILIES[family]` at toy size as a diffusers folder."""
    return save_parts(FAMILIES[family].load_class().tiny(seed), FAMILIES[family].pipeline, folder)


def save_parts(parts: dict[str, Any], pipeline: str, folder: Path) -> Path:
    """Components as a diffusers folder, model_index.json included."""
    index: dict[str, Any] = {"_class_name": pipeline, "_diffusers_version": "0.42.1"}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
        index[name] = [type(part).__module__.partition(".")[0], type(part).__name__]
    index |= {
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
    }
    index["image_encoder"] = [None, None]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
