"""A recipe as a form: one widget per field, made from what the pydantic model says about itself."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import streamlit as st

from registry.errors import BadInput
from studio.app.words import md, plural, spoken, value_text
from trainers.fitting import Traits, circumstances, unmet
from trainers.recipe import FieldFacts, Recipe, apply_sets, find_faults, recipe_fields
from trainers.recipe_text import flatten

SECTION_WORDS = {
    "adapter": ("Adapter", "adapter"),
    "optimizer": ("Learning", "optimizer"),
    "schedule": ("Rate", "schedule"),
    "objective": ("Objective", "objective"),
    "data": ("Pictures", "data"),
    "preservation": ("Kept", "preservation"),
    "tokens": ("New words", "tokens"),
    "train": ("Steps and memory", "train"),
    "checkpoints": ("Saving", "checkpoints"),
    "preview": ("Previews", "preview"),
    "log": ("Curves", "log"),
}
FIXED = {"name", "family", "goal"}  # chosen elsewhere on the page


def recipe_form(
    start: Recipe,
    changed: dict[str, Any],
    reasons: Mapping[str, str],
    *,
    key: str,
    traits: Traits,
    check: Callable[[Recipe], None],
) -> dict[str, str]:
    """Every field below its section; `changed` holds what departs from `start` and is brought up to date.

    Fields that do not count for what is chosen are folded away, see `recipe_section.Needs`; a changed or
    wrong one stays in sight. What is wrong stands at its field.

    Args:
        start: The values to begin from.
        changed: Dotted key -> value; read and written.
        reasons: Dotted key -> why `start` has its value; shown in the help of the field.
        key: Prefix of widget keys; another prefix = fresh widgets.
        traits: What is known of the base.
        check: Raises BadInput when values do not go together.

    Returns:
        What is wrong, see `wrong_values`.
    """
    values, slots = flatten(start.model_dump()), dict[str, Any]()

    def show(facts: FieldFacts) -> None:
        was = values[facts.key]
        with st.container():
            now = field(
                facts,
                changed.get(facts.key, was),
                key=f"{key}{facts.key}",
                reason=reasons.get(facts.key, ""),
            )
            slots[facts.key] = st.empty()
        if same(now, was):
            changed.pop(facts.key, None)
        else:
            changed[facts.key] = now

    sections: dict[str, list[FieldFacts]] = {}
    for facts in recipe_fields().values():
        if facts.key not in FIXED:
            sections.setdefault(facts.key.partition(".")[0], []).append(facts)
    tabs = st.tabs([SECTION_WORDS.get(name, (spoken(name), ""))[0] for name in sections])
    for tab, (name, fields) in zip(tabs, sections.items(), strict=True):
        idle: list[FieldFacts] = []
        with tab:
            with _grid():
                for facts in fields:
                    if facts.key not in changed and _idle(facts, start, changed, traits):
                        idle.append(facts)
                    else:
                        show(facts)
            _folded(idle, show, key=f"{key}idle-{name}")
    wrong = wrong_values(start, changed, check)
    for name, text in wrong.items():
        if name in slots:
            slots[name].markdown(f":red[:small[{md(text)}]]")
    return wrong


def _idle(facts: FieldFacts, start: Recipe, changed: Mapping[str, Any], traits: Traits) -> bool:
    """Whether a field has no effect and nothing is wrong with it: presets may set what a method refuses."""
    around = circumstances(flatten(start.model_dump()) | dict(changed), traits)
    if unmet(facts.needs, around) is None:
        return False
    return all(fault.key != facts.key for fault in find_faults(start, changed))


def _grid() -> Any:
    return st.grid(3, min_column_width=220, gap="small", vertical_alignment="top")


def _folded(idle: Sequence[FieldFacts], show: Callable[[FieldFacts], None], *, key: str) -> None:
    """Fields that have no effect as things are chosen; made only when somebody looks."""
    if not idle:
        return
    with st.expander(
        f"{plural(len(idle), 'setting')} without effect here", key=key, on_change="rerun"
    ) as box:
        if box.open:
            with _grid():
                for facts in idle:
                    show(facts)


def wrong_values(
    start: Recipe, changed: Mapping[str, Any], check: Callable[[Recipe], None]
) -> dict[str, str]:
    """What is wrong with the changes, in plain words by the field's key; {} = nothing.

    What is about no field has the key "".
    """
    if found := find_faults(start, changed):
        return {fault.key: _sentence(fault.wrong) for fault in found}
    try:
        check(apply_sets(start, sets(changed)))
    except BadInput as error:
        key = error.thing if error.thing in recipe_fields() else ""
        said = _sentence(error.wrong) if key else f"{_sentence(error.thing)[:-1]}: {error.wrong}."
        return {key: f"{said} {_sentence(error.do)}".strip()}
    return {}


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}.".replace("..", ".") if text else ""


def field(facts: FieldFacts, value: Any, *, key: str, reason: str = "") -> Any:
    """The widget of one field; returns its value."""
    label = spoken(facts.key)
    text = "  \n".join(md(part) for part in (facts.doc, reason and f"Why this preset: {reason}") if part)
    text += f"  \n`{facts.key}`"
    if facts.kind == "switch":
        return st.toggle(label, bool(value), key=key, help=text)
    if facts.kind == "choice":
        options = list(facts.choices)
        return st.selectbox(label, options, options.index(value), key=key, help=text)
    if facts.kind in ("whole", "number"):
        return _number(facts, value, label=label, key=key, help_text=text)
    if facts.kind == "list":
        lines = st.text_area(
            label, "\n".join(map(str, value or ())), key=key, help=text + "  \nOne a line.", height=68
        )
        return tuple(line.strip() for line in (lines or "").splitlines() if line.strip())
    if facts.kind == "table":
        lines = "\n".join(f"{name} = {toml(item)}" for name, item in (value or {}).items())
        text += "  \nOne `pattern = number` a line."
        return read_table(st.text_area(label, lines, key=key, help=text, height=68) or "")
    return st.text_input(label, value or "", key=key, help=text) or ""


def sets(changed: Mapping[str, Any]) -> list[str]:
    """Changes as `key=value` in TOML, what `apply_sets` and `--set` take."""
    return [f"{key}={toml(value)}" for key, value in changed.items()]


def toml(value: Any) -> str:
    """One value in TOML syntax; None is "none"."""
    if value is None:
        return '"none"'
    if isinstance(value, Mapping):
        items = cast(Mapping[str, Any], value).items()
        return "{" + ", ".join(f"{json.dumps(name)} = {toml(item)}" for name, item in items) + "}"
    if isinstance(value, float):
        text = repr(value)
        return text if any(sign in text for sign in ".e") else f"{text}.0"
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def same(one: Any, other: Any) -> bool:
    """Equal as a recipe understands it: () and [] alike, floats to nine digits."""
    if isinstance(one, float) and isinstance(other, float | int):
        return math.isclose(one, other, rel_tol=1e-9)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return list(one) == list(other)
    return one == other


def change_line(key: str, was: Any, now: Any) -> str:
    """`Max steps: 300 instead of 1000`, as Markdown."""
    return f"**{md(spoken(key))}**: {md(value_text(now))} instead of {md(value_text(was))}"


def read_table(text: str) -> dict[str, Any]:
    """Lines `pattern = number` -> table; what is no number stays text, and the recipe's check names it."""
    table: dict[str, Any] = {}
    for line in filter(None, (line.strip() for line in text.splitlines())):
        name, _, number = (part.strip() for part in line.rpartition("="))
        try:
            value = float(number)
        except ValueError:
            table[name or number] = number
            continue
        table[name] = int(value) if value.is_integer() and "." not in number else value
    return table


def _number(facts: FieldFacts, value: Any, *, label: str, key: str, help_text: str) -> int | float | None:
    kind = int if facts.kind == "whole" else float
    low, high = (None if bound is None else kind(bound) for bound in (facts.low, facts.high))
    if kind is int:
        step: int | float = facts.multiple_of or 1
        form = "%d"
    else:
        step, form = _step(value), "%g"
    return st.number_input(
        label,
        min_value=low,
        max_value=high,
        value=None if value is None else kind(value),
        step=step,
        format=form,
        key=key,
        help=help_text,
        placeholder="none" if facts.optional else None,
    )


def _step(value: float | None) -> float:
    """A tenth of the leading digit's place: 1e-4 moves by 1e-5, 7.0 by 0.1."""
    if not value:
        return 0.01
    return 10.0 ** (math.floor(math.log10(abs(value))) - 1)
