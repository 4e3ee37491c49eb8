"""What a run will cost, as a card."""

from collections.abc import Callable

import streamlit as st

from registry.hashing import hash_json
from registry.records import Base, Dataset
from studio.app import shell
from studio.app.beside import beside
from studio.app.words import duration, md, size
from studio.runs.checks import traits_of
from studio.runs.forecast import Figure, Forecast, forecast
from studio.runs.probe import probe
from trainers.fitting import idle_remarks
from trainers.recipe import Recipe, preset, recipe_hash


def forecast_card(
    recipe: Recipe, base: Base, dataset: Dataset, regularisation: Dataset | None = None
) -> None:
    """Steps, time, disk, memory; and where the figures come from."""
    cost = forecast(shell.workspace(), recipe, base, dataset, regularisation)
    st.subheader("What it will cost", anchor=False)
    figures: list[tuple[str, str, Figure | None]] = [
        ("Steps", f"{cost.steps:,}", None),
        ("Time", _told(cost.time, _minutes), cost.time),
        ("Memory", _told(cost.peak, size), cost.peak),
        ("Disk, at most", size(cost.disk_bytes), None),
    ]
    if cost.ram != cost.peak:
        figures.append(("RAM", _told(cost.ram, size), cost.ram))
    with st.grid(2, min_column_width=110, gap="small"):
        for label, value, figure in figures:
            with st.container():
                shell.fact(label, value, term=figure.kind if figure else "")
    if cost.start is not None:
        st.caption(f"Start and end take {md(_told(cost.start, _minutes))} beside it.")
    st.caption(md(" ".join((cost.fit, *cost.reasons, *cost.notes))))
    measuring(recipe, base, dataset, regularisation, cost)
    usual = preset(base.family, recipe.goal, base.name)
    for remark in idle_remarks(recipe, usual, traits_of(shell.workspace(), base)):
        st.caption(f":orange[:material/warning:] {md(remark)}.")


def measuring(
    recipe: Recipe, base: Base, dataset: Dataset, regularisation: Dataset | None, cost: Forecast
) -> None:
    """The button that trains a few steps, while nothing equal was measured; then what it says meanwhile."""
    ws = shell.workspace()
    frozen = hash_json([recipe_hash(recipe), base.id, dataset.id])[:12]
    key = f"probe-{frozen}"
    measured = cost.time.kind == "measured"
    if st.session_state.get("probing") != key:
        if not measured and st.button("Measure it: a few steps", key="probe", icon=":material/timer:"):
            st.session_state["probing"] = key
            st.rerun()
        return
    found = beside(key, lambda: probe(ws, recipe, base, dataset, regularisation), "Training a few steps")
    if found is not None:
        for name in ("probing", f"beside-{key}"):
            st.session_state.pop(name, None)
        shell.note("Measured")
        st.rerun()


def _told(figure: Figure, words: Callable[[float], str]) -> str:
    """ "about 12 min", without about when it was measured."""
    return f"{'' if figure.kind == 'measured' else 'about '}{words(figure.value)}"


def _minutes(value: float) -> str:
    return duration(value * 60) or "-"
