"""What a run will cost, as a card."""

import streamlit as st

from registry.records import Base, Dataset
from studio.app import shell
from studio.app.words import duration, md, size
from studio.runs.checks import traits_of
from studio.runs.forecast import forecast
from trainers.fitting import idle_remarks
from trainers.recipe import Recipe, preset


def forecast_card(
    recipe: Recipe, base: Base, dataset: Dataset, regularisation: Dataset | None = None
) -> None:
    """Steps, time, disk, memory; and where the figures come from."""
    cost = forecast(shell.workspace(), recipe, base, dataset, regularisation)
    st.subheader("What it will cost", anchor=False)
    time = duration(cost.minutes * 60) if cost.minutes is not None else "not known yet"
    memory = size(cost.memory_bytes) if cost.memory_bytes else "not known yet"
    with st.grid(2, min_column_width=110, gap="small"):
        for label, value in (
            ("Steps", f"{cost.steps:,}"),
            ("Time", time),
            ("Memory", memory),
            ("Disk, at most", size(cost.disk_bytes)),
        ):
            with st.container():
                shell.fact(label, value)
    st.caption(md(" ".join(cost.notes)))
    usual = preset(base.family, recipe.goal, base.name)
    for remark in idle_remarks(recipe, usual, traits_of(shell.workspace(), base)):
        st.caption(f":orange[:material/warning:] {md(remark)}.")
