"""How thorough a run should be, as changes to a preset; and recipes from uploaded TOML. No Streamlit here."""

import tempfile
from pathlib import Path
from typing import Any

from registry.files import file_stem
from trainers.recipe import Recipe, differences, load_recipe

EFFORT = {"quick": 0.4, "normal": 1.0, "thorough": 2.0}  # of the preset's steps
EFFORT_WORDS = {"quick": "Quick look", "normal": "Normal", "thorough": "Thorough"}
EFFORT_REASONS = {
    "quick": "Enough to see whether pictures and captions work.",
    "normal": "",
    "thorough": "Worth it when a normal run was not there yet.",
}
SCALED = ("train.max_steps", "checkpoints.every", "preview.every")
GOALS = {
    "style": ("A style", "How things look: line, colour, light"),
    "character": ("A character", "Who someone is, in any pose and place"),
    "concept": ("A thing", "What an object or a concept is"),
}


def effort_sets(preset: Recipe, effort: str) -> list[str]:
    """`key=value` that stretch or shorten a preset; the intervals move along: as much is shown and saved."""
    factor = EFFORT[effort]
    if factor == 1.0:
        return []
    values = (preset.train.max_steps, preset.checkpoints.every, preset.preview.every)
    return [
        f"{key}={max(1, round(value * factor))}" for key, value in zip(SCALED, values, strict=True) if value
    ]


def read_upload(name: str, data: bytes) -> Recipe:
    """The recipe in an uploaded TOML file; errors carry the file's own name.

    Raises:
        BadInput: as `load_recipe`.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{file_stem(Path(name).stem)}.toml"
        path.write_bytes(data)
        return load_recipe(path)


def departures(recipe: Recipe, start: Recipe) -> dict[str, Any]:
    """Dotted key -> value where `recipe` is not `start`; what the form calls "changed"."""
    return {change.key: change.value for change in differences(recipe, start)}
