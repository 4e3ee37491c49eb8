"""The checkpoints of a run, best first, each with its reason and a button that keeps it."""

from typing import Any

import streamlit as st

from registry.records import Adapter, Run
from studio.app import shell
from studio.app.words import md, plural
from studio.evidence.words import STAGES
from studio.runs.keep import keep_step
from studio.runs.ranking import Ranked, Ranking

MOST = 12  # rows; a run may keep a thousand checkpoints
COLOURS: dict[str, Any] = {"good": "green", "undertrained": "gray", "overtrained": "orange"}
FIGURES = {"held_out": "held-out pictures", "train": "training pictures", "prior": "other prompts"}
BY = {
    "evidence": "Ranked by what their pictures show.",
    "probe": "Ranked by the loss at fixed noise and timesteps.",
    "": "Nothing was measured of them; `checkpoints.keep_best` turns that on.",
}
PICKED = {"you": "your pick", "evidence": "picked by its pictures"}
HELP = (
    "Losses at fixed noise and timesteps, lower is better. Held-out pictures are never trained on: their "
    "loss rises when the others are learned by heart. Other prompts: how far the base was moved where it "
    "should have stayed, 0 = not at all."
)


def advice(ranking: Ranking) -> None:
    """Whether to stop; belongs beside the button that does."""
    if ranking.advice:
        st.info(md(ranking.advice), icon=":material/trending_up:")


def checkpoints(run: Run, ranking: Ranking) -> None:
    """The rows, best first."""
    st.subheader("Checkpoints", anchor=False, help=HELP)
    _held_out(ranking)
    if not ranking.rows:
        st.caption("They appear here as they are saved, the best first.")
        return
    st.caption(BY[ranking.by])
    adapters = {a.step: a for a in shell.workspace().catalog.list(Adapter, run_id=run.id, trashed_at=None)}
    with st.container(key="checkpoints"):
        for row in ranking.rows[:MOST]:
            _row(run, row, best=row is ranking.best, adapter=adapters.get(row.step))
    if len(ranking.rows) > MOST:
        more = plural(len(ranking.rows) - MOST, "more checkpoint")
        st.caption(f"{more}: `studio runs show {run.id}`")
    if st.button("Compare them", icon=":material/compare:"):
        shell.go("compare", new="1", run=run.id)


def _held_out(ranking: Ranking) -> None:
    """What the run does not train on."""
    if names := ranking.held_out:
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        what = "picture is" if len(names) == 1 else "pictures are"
        st.caption(f"{len(names)} {what} held out to judge them by: {md(shown)}")


def _row(run: Run, row: Ranked, *, best: bool, adapter: Adapter | None) -> None:
    key = f"{run.id}-{row.step}"
    with st.container(key=f"panel-checkpoint-{key}", horizontal=True, vertical_alignment="center"):
        with st.container(gap="xsmall", width="stretch"):
            with st.container(horizontal=True, vertical_alignment="center", gap="small"):
                st.markdown(f"**Step {row.step:,}**", width="content")
                _badges(run, row, best=best)
            st.markdown(md(row.reason))
            if figures := _figures(row):
                st.caption(figures)
        with st.container(horizontal=True, width="content", vertical_alignment="center"):
            if adapter is not None:
                shell.link("adapters", "In the library", icon=":material/style:", adapter=adapter.id)
            if _whole_model(run) or (
                run.pick_by == "you" and run.pick_step == row.step and adapter is not None
            ):
                return
            hint = "Takes this checkpoint into the library and marks it as your pick"
            if st.button("Keep this one", key=f"keep-{key}", icon=":material/bookmark_add:", help=hint):
                _keep(run, row.step)


def _badges(run: Run, row: Ranked, *, best: bool) -> None:
    stage_badge(row.stage, best=best)
    if run.pick_step == row.step and run.pick_by in PICKED:
        st.badge(PICKED[run.pick_by], icon=":material/bookmark:", color="primary")


def stage_badge(stage: str, *, best: bool) -> None:
    """Where a checkpoint stands."""
    if best:
        st.badge("best", color="primary")
    elif stage in STAGES:
        st.badge(STAGES[stage], color=COLOURS[stage])


def _figures(row: Ranked) -> str:
    """What was measured, in a line."""
    parts = [f"{words} {row.figures[name]:.4f}" for name, words in FIGURES.items() if name in row.figures]
    return " · ".join(parts)


def _whole_model(run: Run) -> bool:
    """Whether checkpoints hold no adapter."""
    return run.recipe.get("adapter", {}).get("method") == "full"


def _keep(run: Run, step: int) -> None:
    with shell.guarded():
        kept = keep_step(shell.workspace(), run, step)
        shell.note(
            f"{kept.adapter.name} is in the library" if kept.new else f"{kept.adapter.name} is your pick"
        )
        st.rerun()
