"""Blind votes: two pictures without names, and who is ahead.

What is sent to the browser before the vote is the pixels alone: no address, no id, no name, no metadata.
"""

import secrets
from html import escape
from typing import Any

import streamlit as st
from PIL import Image

from registry.records import Comparison, Sample
from studio.app import shell
from studio.app.components.compare_parts import blind_pair
from studio.app.words import md, plural, printable
from studio.compare.arena import (
    Pair,
    Ranking,
    axes_to_vote_on,
    by_prompt,
    cast,
    labels_of,
    next_pair,
    ranking,
    undo,
)
from studio.compare.axes import AXES
from studio.compare.page import inline
from studio.compare.spec import Spec

SIDE = 900  # pixels of a picture in a pair, at most
RECENT = 3  # pairs that do not come again at once
SAID = {"left": "the left one", "right": "the right one", "tie": "no difference"}


def arena(comparison: Comparison, spec: Spec) -> None:
    """Choose an axis, vote, see the ranking."""
    axes = axes_to_vote_on(spec)
    if not axes:
        text = "Votes need two values of adapter, checkpoint, strength, steps, guidance or sampler."
        shell.empty("arena", "Nothing to vote on", text)
        return
    axis = axes[0]
    if len(axes) > 1:
        axis = st.segmented_control(
            "Which one is compared", axes, format_func=lambda name: AXES[name].label, default=axes[0],
            required=True, key=f"c-arena-axis-{comparison.id}",
        ) or axes[0]  # fmt: skip
    state = _state_of(comparison, axis)
    if state["pair"] is None:
        _deal(comparison, axis, state)
    pair: Pair | None = state["pair"]
    if pair is None:
        text = "Two pictures that differ in nothing else are needed. They come while the grid is drawn."
        shell.empty("arena", "No pair is drawn yet", text)
        return
    st.markdown(f":gray[Which one is better? {md(pair.prompt)}]")
    outcome = blind_pair(
        state["token"], *state["pictures"], key=f"arena-{comparison.id}-{axis}-{state['turn']}"
    )
    if outcome:
        with shell.guarded():
            cast(shell.workspace(), comparison, pair, outcome)
            state["last"] = (pair, outcome)
            state["recent"] = [*state["recent"], pair][-RECENT:]
            _deal(comparison, axis, state)
            st.rerun()
    _last(comparison, spec, axis, state)
    _rankings(comparison, axis)


def _state_of(comparison: Comparison, axis: str) -> dict[str, Any]:
    """The pair on the table; on the server alone."""
    fresh: dict[str, Any] = {"pair": None, "token": "", "pictures": (), "turn": 0, "last": None, "recent": []}
    return st.session_state.setdefault(f"c-arena-{comparison.id}-{axis}", fresh)


def _deal(comparison: Comparison, axis: str, state: dict[str, Any]) -> None:
    """Another pair; one that was just seen only when there is no other."""
    workspace = shell.workspace()
    pair = next_pair(workspace, comparison, axis, without=state["recent"]) or next_pair(
        workspace, comparison, axis
    )
    state.update(pair=pair, token=secrets.token_hex(8), turn=state["turn"] + 1)
    if pair is not None:
        state["pictures"] = tuple(_pixels(id) for id in (pair.left_sample, pair.right_sample))


def _pixels(sample_id: str) -> str:
    """A picture as a data address without what its file says of itself."""
    workspace = shell.workspace()
    sample = workspace.catalog.get(Sample, sample_id)
    with Image.open(workspace.resolve(sample.files[0]), formats=("PNG", "JPEG", "WEBP")) as picture:
        return inline(picture, SIDE)


def _last(comparison: Comparison, spec: Spec, axis: str, state: dict[str, Any]) -> None:
    """What the last pair was, and the way back."""
    if state["last"] is None:
        return
    pair, outcome = state["last"]
    labels = labels_of(spec, axis)
    with st.container(horizontal=True, vertical_alignment="center"):
        left, right = (md(labels.get(value, "gone")) for value in (pair.left, pair.right))
        st.markdown(f":gray[Left was] {left}:gray[, right was] {right}:gray[; you said {SAID[outcome]}.]")
        if st.button("Undo", icon=":material/undo:", key="c-undo"):
            with shell.guarded():
                undo(shell.workspace(), comparison, axis)
                state["last"] = None
                st.rerun()


def _rankings(comparison: Comparison, axis: str) -> None:
    found = ranking(shell.workspace(), comparison, axis)
    if not found.votes:
        st.caption("Left and right arrow choose, the arrow down says that there is no difference.")
        return
    st.subheader("Who is ahead", anchor=False)
    st.html(ranking_html(found))
    st.markdown("  \n".join(md(line) for line in found.advice))
    groups = by_prompt(shell.workspace(), comparison, axis)
    if groups:
        with st.expander("By prompt"):
            for prompt, one in groups.items():
                st.markdown(f"**{md(prompt) or 'no prompt'}**")
                st.html(ranking_html(one))
    st.caption(
        f"{plural(found.votes, 'vote')}. Strength in natural log units around a mean of 0, with its 95 % "
        "interval: Bradley-Terry with ties (Davidson 1970). Intervals that overlap are not told apart yet."
    )


def ranking_html(found: Ranking) -> str:
    """Names, and a bar for each interval; all foreign text escaped."""
    low, high = min(row.low for row in found.rows), max(row.high for row in found.rows)
    span = max(high - low, 1e-9)

    def at(value: float) -> str:
        return f"{(value - low) / span:.2%}"

    lines = "".join(
        f"""<div class="who">{escape(printable(row.label))}</div>
<div class="span" title="{row.strength:+.2f}, {row.low:+.2f} to {row.high:+.2f}">
<i class="zero" style="left:{at(0)}"></i>
<i class="range" style="left:{at(row.low)};width:{(row.high - row.low) / span:.2%}"></i>
<i class="dot" style="left:{at(row.strength)}"></i></div>
<div class="score">{row.strength:+.2f}<small>{row.wins} won, {row.ties} tied, {row.losses} lost</small></div>
"""
        for row in found.rows
    )
    return f'<div class="ls-ranks">\n{lines}</div>'
