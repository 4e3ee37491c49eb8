"""A run as it happens: progress, figures, charts, previews."""

from typing import Any

import streamlit as st

from registry.records import Run
from studio.app import theme
from studio.app.components.cards import film_rows, state_badge
from studio.app.components.cluster import place_words
from studio.app.components.gallery import film
from studio.app.shell import run_progress, workspace
from studio.app.words import PHASE_WORDS, duration, md, size
from studio.runs.ranking import Point, points_of
from trainers.rundir import Status

POINTS = 600  # of a chart; more cannot be told apart on a screen
MARKED = 40  # points up to which each is marked
PROBE_WORDS = {"train": "training pictures", "held_out": "held-out pictures"}


def progress_panel(run: Run, status: Status | None) -> None:
    """State, bar and the figures a person waits for."""
    fraction, line = run_progress(run, status)
    with st.container(horizontal=True, vertical_alignment="center"):
        state_badge(run)
        phase = phase_words(status) if run.state.active else ""
        said = "".join(f" :gray[· {md(words)}]" for words in (phase, place_words(run.place)) if words)
        st.markdown(f"{md(line)}{said}")
    st.progress(fraction)
    if status is None:
        return
    figures = [("Loss", f"{status.loss:.4f}" if status.loss is not None else "–", "smoothed over 20 steps")]
    if run.state.active:
        pace = f"{1 / status.seconds_per_step:.2f} steps/s" if status.seconds_per_step else "–"
        if status.seconds_per_step and status.seconds_per_step > 1:
            pace = f"{status.seconds_per_step:.1f} s/step"
        figures += [("Speed", pace, ""), ("Time left", duration(status.seconds_left) or "–", "")]
    if status.best_step:
        figures.append(("Best step", f"{status.best_step:,}", "lowest loss at fixed noise and timesteps"))
    figures.append(("Memory", size(status.peak_memory) if status.peak_memory else "–", "peak so far"))
    with st.container(horizontal=True, gap=24):  # each as wide as it is: five fit in a row
        for label, value, hint in figures:
            st.metric(label, value, help=hint or None, width="content")


def phase_words(status: Status | None) -> str:
    """What the trainer is doing, in words; "" while it trains."""
    if status is None or status.phase in ("", "training"):
        return ""
    words = PHASE_WORDS.get(status.phase, status.phase)
    return f"{words} {status.phase_done} of {status.phase_total}" if status.phase_total else words


def charts(run: Run, lines: list[dict[str, Any]]) -> None:
    """Loss, what the probe found, and learning rate over steps.

    Args:
        run: The run.
        lines: Its metric lines.
    """
    if len(lines) < 2:
        st.caption("Curves appear after the first steps.")
        return
    points = points_of(lines)
    lines = lines[:: max(1, len(lines) // POINTS)]
    rates = [[line["step"], line["lr"]] for line in lines if line.get("lr") is not None]
    _pair(
        (
            "Loss: lower is closer to your pictures; it wobbles, and that is normal",
            f"loss-{run.id}",
            _loss(lines),
        ),
        _probed(run, points) if len(points) > 1 else None,
    )
    _pair(
        ("Learning rate: how big the steps are", f"lr-{run.id}", _chart([("learning rate", rates, 2, 1.0)])),
        _moved(run, points) if len(points) > 1 else None,
    )


def _pair(*charts: tuple[str, str, dict[str, Any]] | None) -> None:
    """Charts side by side: (caption, key, options) each."""
    for column, chart in zip(st.columns(2), charts, strict=True):
        if chart is not None:
            caption, key, options = chart
            with column:
                st.caption(caption)
                st.echarts_chart(options, height=230, key=key)


def _probed(run: Run, points: list[Point]) -> tuple[str, str, dict[str, Any]] | None:
    """Losses of the probe at each checkpoint."""
    series = [
        (words, found, 2, 1.0) for name, words in PROBE_WORDS.items() if (found := _figure(points, name))
    ]
    said = "At fixed noise; on held-out pictures it rises with copying"
    said = said if len(series) > 1 else "Loss at fixed noise, at each checkpoint"
    return (said, f"probe-{run.id}", _chart(series, several=True)) if series else None


def _moved(run: Run, points: list[Point]) -> tuple[str, str, dict[str, Any]] | None:
    """How far other prompts are from what the base makes of them."""
    found = _figure(points, "prior")
    said = "Other prompts: how far they moved from the base"
    options = _chart([("other prompts", found, 2, 1.0)], scale=False)
    return (said, f"prior-{run.id}", options) if found else None


def _figure(points: list[Point], name: str) -> list[list[float]]:
    return [[point.step, point.figures[name]] for point in points if name in point.figures]


def previews(run: Run) -> None:
    """Pictures over time, one row per prompt."""
    rows = film_rows(workspace().run_dir(run.id), run.id)
    if not rows:
        st.caption("Preview pictures appear here while it trains.")
        return
    film(rows, key=f"film-{run.id}")


def _loss(lines: list[dict[str, Any]]) -> dict[str, Any]:
    raw = [[line["step"], line["loss"]] for line in lines if line.get("loss") is not None]
    smooth: list[list[float]] = []
    mean = raw[0][1] if raw else 0.0
    for step, value in raw:
        mean += (value - mean) * 0.08
        smooth.append([step, round(mean, 6)])
    return _chart([("each step", raw, 1, 0.3), ("smoothed", smooth, 2, 1.0)])


def _chart(
    series: list[tuple[str, list[list[float]], int, float]], *, scale: bool = True, several: bool = False
) -> dict[str, Any]:
    """Lines over steps: (name, points, width, opacity) each; `several` have a colour and a name each."""
    dark = st.context.theme.type == "dark"
    colours = list(theme.CATEGORIES_DARK if dark else theme.CATEGORIES)
    return {
        "animation": False,
        "color": colours if several else colours[:1],
        "legend": {"show": several, "top": 0, "left": 0, "textStyle": {"color": "#8A8A85"}},
        "grid": {"left": 8, "right": 12, "top": 32 if several else 12, "bottom": 8, "containLabel": True},
        "tooltip": {"trigger": "axis", "valueFormatter": "%.3g"},
        "xAxis": {"type": "value", "min": "dataMin", "max": "dataMax", "splitLine": {"show": False}},
        "yAxis": {"type": "value", "scale": scale, "splitNumber": 4},
        "series": [
            {
                "type": "line",
                "name": name,
                "data": data,
                "showSymbol": len(data) <= MARKED,
                "lineStyle": {"width": width, "opacity": opacity},
            }
            for name, data, width, opacity in series
        ],
    }
