"""The recipe: everything a person may choose about a run, checked before any time is spent.

TOML by hand, JSON by machine. A TOML file is complete, or says `preset = "sd15-style"` and overrides what it
wants. `trainers/recipes/*.toml` are the presets; the comment above each of their values is its reason.
"""

import functools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import Field, ValidationError, field_validator

from registry.errors import BadInput
from registry.files import check_name, read_json
from registry.hashing import hash_json
from trainers.families import FAMILIES
from trainers.recipe_dreambooth import PreservationSection, TokensSection
from trainers.recipe_fields import (
    AdapterSection,
    CheckpointsSection,
    DataSection,
    LogSection,
    ObjectiveSection,
    OptimizerSection,
    PreviewSection,
    ScheduleSection,
    Section,
    TrainSection,
)
from trainers.recipe_text import (
    Fault,
    FieldFacts,
    explain,
    faults,
    field_facts,
    flatten,
    nest,
    parse_toml,
    read_reasons,
    suggest,
    write_toml,
)

__all__ = [
    "AdapterSection", "CheckpointsSection", "DataSection", "Difference", "FieldFacts", "LogSection",
    "ObjectiveSection", "OptimizerSection", "PreservationSection", "PreviewSection", "Recipe",
    "ScheduleSection", "TokensSection", "TrainSection",
    "apply_sets", "differences", "find_faults", "load_frozen", "load_recipe", "preset", "preset_by_name",
    "preset_name", "preset_names", "preset_text", "reasons", "recipe_fields", "recipe_hash", "thaw",
    "to_toml",
]  # fmt: skip

PRESETS = Path(__file__).parent / "recipes"
GOALS = ("style", "character", "concept")
MAX_BYTES = 1 << 20


class Recipe(Section):
    """All choices of one run."""

    name: str = ""
    """Name of the run and of its adapter; empty = made from the data set and the goal."""
    family: str
    """Family of the base that this recipe is for."""
    goal: Literal["style", "character", "concept"]
    """What is learned: how things look, who someone is, or what a thing is."""
    adapter: AdapterSection = Field(default_factory=AdapterSection)
    optimizer: OptimizerSection = Field(default_factory=OptimizerSection)
    schedule: ScheduleSection = Field(default_factory=ScheduleSection)
    objective: ObjectiveSection = Field(default_factory=ObjectiveSection)
    data: DataSection = Field(default_factory=DataSection)
    preservation: PreservationSection = Field(default_factory=PreservationSection)
    tokens: TokensSection = Field(default_factory=TokensSection)
    train: TrainSection = Field(default_factory=TrainSection)
    checkpoints: CheckpointsSection = Field(default_factory=CheckpointsSection)
    preview: PreviewSection = Field(default_factory=PreviewSection)
    log: LogSection = Field(default_factory=LogSection)

    @property
    def bucket_step(self) -> int:
        """Multiple of a bucket's sides in pixels: its own, or the family's."""
        return self.data.bucket_step or FAMILIES[self.family].bucket_multiple

    @field_validator("name")
    @classmethod
    def _name_is_safe(cls, value: str) -> str:
        return check_name(value, "name") if value else value

    @field_validator("family")
    @classmethod
    def _family_is_known(cls, value: str) -> str:
        if value not in FAMILIES:
            raise ValueError("one of " + ", ".join(FAMILIES))
        return value


@dataclass(frozen=True)
class Difference:
    """A field in which a recipe departs from its preset; `reason` is why the preset has its value."""

    key: str
    preset: Any
    value: Any
    reason: str


def load_recipe(path: Path) -> Recipe:
    """The recipe in a TOML file.

    Raises:
        BadInput: not readable, not TOML, unknown key, value out of range; one line that names it.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BadInput(path.name, "is larger than 1 MiB", "give a recipe in TOML")
        data = path.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise BadInput(str(path), f"cannot be read ({reason})", "give the path of a recipe") from error
    return _from_table(parse_toml(data, path.name), path.name)


def load_frozen(path: Path) -> Recipe:
    """The recipe in a run's recipe.json.

    Raises:
        BadInput: missing, or not a recipe.
        Damaged: not JSON.
    """
    if not path.exists():
        raise BadInput(str(path), "is missing", "start a new run")
    return thaw(read_json(path), path.name)


def thaw(table: Any, source: str = "recipe") -> Recipe:
    """The recipe that a run was given, from its JSON.

    A run from before pictures were held out goes on, or is done again, with all of them.

    Raises:
        BadInput: not a recipe.
    """
    known = cast("dict[str, Any]", table) if isinstance(table, dict) else {}
    section = known.get("checkpoints")
    if isinstance(section, dict) and "held_out" not in section:
        table = known | {"checkpoints": cast("dict[str, Any]", section) | {"held_out": 0}}
    return _validate(table, source)


def preset_names() -> list[str]:
    """Names of the shipped recipes, `<family or base>-<goal>`, sorted."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def preset_name(family: str, goal: str, base_name: str = "") -> str:
    """Name of the preset for a goal: the base's own (`pocket-style`) if its family fits, else the family's.

    Raises:
        BadInput: unknown goal or family.
    """
    if goal not in GOALS:
        raise BadInput("goal", f"is {goal!r}", "use one of " + ", ".join(GOALS))
    own = f"{base_name}-{goal}"
    if own in preset_names() and preset_by_name(own).family == family:
        return own
    if f"{family}-{goal}" not in preset_names():
        raise BadInput("family", f"{family!r} has no shipped recipe", "write one; see docs/recipes.md")
    return f"{family}-{goal}"


def preset(family: str, goal: str, base_name: str = "") -> Recipe:
    """The shipped recipe for a goal; see `preset_name`."""
    return preset_by_name(preset_name(family, goal, base_name))


def preset_text(name: str) -> str:
    """A shipped recipe as it is written, comments included; "sd15/style" means "sd15-style".

    Raises:
        BadInput: no such recipe, with the nearest name.
    """
    name = name.replace("/", "-")
    if name not in preset_names():
        raise BadInput("preset", f"{name!r} is not a shipped recipe", suggest(name, preset_names()))
    return (PRESETS / f"{name}.toml").read_text(encoding="utf-8")


@functools.cache
def preset_by_name(name: str) -> Recipe:
    """The shipped recipe of that name."""
    return _validate(parse_toml(preset_text(name).encode(), f"{name}.toml"), f"{name}.toml")


@functools.cache
def reasons(name: str) -> dict[str, str]:
    """Why a shipped recipe has its values: dotted key -> the comment at it."""
    return read_reasons(preset_text(name))


@functools.cache
def recipe_fields() -> dict[str, FieldFacts]:
    """Every settable field by its dotted key, in recipe order."""
    return field_facts(Recipe)


def apply_sets(recipe: Recipe, sets: Sequence[str]) -> Recipe:
    """`recipe` with "key=value" overrides; values in TOML syntax, plain words without quotes allowed.

    Raises:
        BadInput: no "=", unknown key, value out of range.
    """
    values = flatten(recipe.model_dump())
    known = recipe_fields()
    for item in sets:
        key, equals, text = (part.strip() for part in item.partition("="))
        if not equals:
            raise BadInput("--set", f"{item!r} has no '='", "write it as train.max_steps=1000")
        if key not in known:
            inside = next((name for name in known if name.startswith(f"{key}.")), "")
            do = f"name one of its keys, as {inside}" if inside else suggest(key, list(known))
            raise BadInput("--set", f"{key!r} is not a recipe key", do)
        values[key] = _parse_value(text, known[key])
    return _validate(nest(values), "--set")


def find_faults(recipe: Recipe, changed: Mapping[str, Any]) -> list[Fault]:
    """What is wrong with `recipe` when values are put in by dotted key; [] = nothing."""
    try:
        Recipe.model_validate(nest(flatten(recipe.model_dump()) | dict(changed)))
    except ValidationError as error:
        return faults(error, recipe_fields())
    return []


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 over the canonical JSON of all values but the name: equal choices, equal hash."""
    return hash_json(recipe.model_dump(mode="json", exclude={"name"}))


def to_toml(recipe: Recipe) -> str:
    """The whole recipe as TOML: above each value its preset's reason, or its meaning when changed."""
    comments = {key: facts.doc for key, facts in recipe_fields().items()}
    kin = [name for name in preset_names() if _same_task(preset_by_name(name), recipe)]
    if kin:
        nearest = min(kin, key=lambda name: len(differences(recipe, name)))
        changed = {difference.key for difference in differences(recipe, nearest)}
        comments |= {key: why for key, why in reasons(nearest).items() if key not in changed}
    return write_toml(recipe.model_dump(mode="json"), comments)


def differences(recipe: Recipe, preset: Recipe | str) -> list[Difference]:
    """Where `recipe` departs from a preset, given by name or as a recipe; names of runs do not count."""
    if isinstance(preset, Recipe):
        name = next((n for n in preset_names() if preset_by_name(n) == preset), "")
    else:
        name, preset = preset, preset_by_name(preset)
    why = reasons(name) if name else {}
    theirs, ours = flatten(preset.model_dump()), flatten(recipe.model_dump())
    return [
        Difference(key, theirs[key], value, why.get(key, ""))
        for key, value in ours.items()
        if key != "name" and value != theirs[key]
    ]


def _same_task(one: Recipe, other: Recipe) -> bool:
    return (one.family, one.goal) == (other.family, other.goal)


def _from_table(table: dict[str, Any], source: str) -> Recipe:
    name = table.pop("preset", None)
    if name is None:
        return _validate(table, source)
    if not isinstance(name, str):
        raise BadInput(source, f"preset is {name!r}; must be text", "see `studio recipes list` for the names")
    merged = preset_by_name(name.replace("/", "-")).model_dump()
    for key, value in table.items():
        old = merged.get(key)
        merged[key] = old | value if isinstance(old, dict) and isinstance(value, dict) else value
    return _validate(merged, source)


def _validate(table: Any, source: str) -> Recipe:
    try:
        return Recipe.model_validate(table)
    except ValidationError as error:
        raise explain(error, source, recipe_fields()) from error


def _parse_value(text: str, facts: FieldFacts) -> Any:
    """Text fields take the text as it is, unless it is quoted; other fields try TOML first. A text alone is a
    list of one."""
    value: Any = text
    try:
        parsed = tomllib.loads(f"value = {text}")
    except ValueError:  # not TOML, or a number of thousands of digits
        parsed = {}
    if set(parsed) == {"value"} and (facts.kind != "text" or isinstance(parsed["value"], str)):
        value = parsed["value"]
    if facts.kind == "list" and facts.items.endswith("texts") and isinstance(value, str):
        return value if value.startswith("[") else [value] if value else []
    return value
