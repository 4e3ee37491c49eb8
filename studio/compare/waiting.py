"""Waiting for a comparison from a terminal."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from registry.errors import StudioError
from registry.records import Comparison, JobKind
from studio.compare.grids import cells_of, progress, stop

if TYPE_CHECKING:
    from studio.workspace import Workspace


def wait(ws: "Workspace", comparison: Comparison, say: Callable[[str], None] | None = None) -> None:
    """Stay until none of its cells waits; be the worker for samples when none holds the workspace.

    Raises:
        StudioError: cells could not be drawn; says how many and why the first.
        KeyboardInterrupt: Ctrl-C; what is not drawn is called off, what is drawn stays.
    """
    from studio.runs.follow import attend  # it needs the worker, which needs the sampler's client

    said = ""

    def ended() -> bool:
        nonlocal said
        found = progress(ws, comparison, cells_of(ws, comparison))
        left = f", about {found.seconds_left:.0f} s left" if found.seconds_left else ""
        line = f"{found.drawn} of {found.total} drawn"
        if say is not None and line != said:
            say(line + left)
        said = line
        return not found.live

    try:
        attend(ws, ended, say, kinds=(JobKind.SAMPLE,))
    except KeyboardInterrupt:
        stop(ws, comparison)
        raise
    failed = [cell for cell in cells_of(ws, comparison).values() if cell.state == "failed"]
    if failed:
        thing = f"comparison {comparison.name}"
        wrong = f"{len(failed)} cells could not be drawn; the first says: {failed[0].error.rstrip('.')}"
        raise StudioError(thing, wrong, f"mend it, then: studio comparisons continue {comparison.id}")
