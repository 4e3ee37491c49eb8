"""Waiting for an evidence sheet from a terminal."""

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from registry.errors import NotFound, StudioError
from registry.records import Evaluation, JobKind
from studio.evidence.evaluations import stage_of, stop

if TYPE_CHECKING:
    from studio.workspace import Workspace


def wait(ws: "Workspace", evaluation: Evaluation, say: Callable[[str], None] | None = None) -> Evaluation:
    """Stay until it is measured; be the worker for its pictures when none holds the workspace.

    Raises:
        StudioError: pictures could not be drawn, or they could not be measured, or somebody removed them.
        KeyboardInterrupt: Ctrl-C; what is not drawn is called off, what is drawn stays.
    """
    from studio.runs.follow import attend  # it needs the worker, which needs the sampler's client

    said = ""

    def ended() -> bool:
        nonlocal said
        there = ws.catalog.find(Evaluation, evaluation.id)
        if there is None:
            return True
        stage = stage_of(ws, there)
        if stage.name == "drawing":
            line = f"{stage.drawn} of {stage.total} drawn"
            left = f", about {stage.seconds_left:.0f} s left" if stage.seconds_left else ""
        else:
            line, left = stage.name, ""
        if say is not None and line != said and stage.live:
            say(line + left)
        said = line
        return not stage.live

    try:
        attend(ws, ended, say, kinds=(JobKind.SAMPLE, JobKind.EVALUATE))
    except KeyboardInterrupt:
        with suppress(NotFound):
            stop(ws, evaluation)
        raise
    done = ws.catalog.find(Evaluation, evaluation.id)
    if done is None:
        raise StudioError("evidence", "its comparison, run or adapter was removed meanwhile", "ask again")
    stage = stage_of(ws, done)
    if stage.name != "measured":
        what = "were not drawn" if stage.name == "incomplete" else "could not be measured"
        why = f"; the first says: {stage.error.rstrip('.')}" if stage.error else ""
        raise StudioError(
            "evidence", f"its pictures {what}{why}", "mend it, then ask again: what is drawn stays"
        )
    return done
