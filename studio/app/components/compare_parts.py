"""Components of the Compare page in plain JavaScript: the grid, the slider, the blind pair."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from streamlit.components.v2 import component

from studio.app.components.gallery import clean, noop, read_asset
from studio.compare.page import HERE as OF_COMPARE

ACTIONS = (("use", "Use these settings"), ("left", "A of the slider"), ("right", "B of the slider"))


def _shared(name: str) -> str:
    return (OF_COMPARE / name).read_text(encoding="utf-8")


_GRID = component(
    "lora_studio_grid",
    html='<div id="cells" tabindex="-1"></div>',
    css=read_asset("grid.css"),
    js=read_asset("lightbox.js") + read_asset("grid.js"),
)
_SLIDER = component(
    "lora_studio_slider",
    html=_shared("slider.html"),
    css=".slider { font-family: var(--st-font); color: var(--st-text-color); padding: 3px; }\n"
    + _shared("slider.css"),
    js=_shared("slider.js") + read_asset("compare_slider.js"),
)
_ARENA = component(
    "lora_studio_arena",
    html=read_asset("arena.html"),
    css=read_asset("arena.css"),
    js=read_asset("arena.js"),
)


@dataclass(frozen=True, kw_only=True)
class GridCell:
    """One cell; every text is shown as text."""

    id: str
    text: str
    url: str = ""  # of its picture; "" = not drawn
    state: str = ""
    note: str = ""  # in place of the picture
    error: str = ""
    side: str = ""  # "left" | "right": on the slider


@dataclass(frozen=True)
class Side:
    """A picture of the slider."""

    url: str
    name: str


def grid(
    columns: Sequence[str], rows: Sequence[tuple[str, Sequence[GridCell]]], *, key: str, cell: int = 170
) -> tuple[str, str] | None:
    """A table of pictures; a click shows one large, with arrows and actions.

    Args:
        columns: Labels.
        rows: (label, cells).
        key: Unique on the page.
        cell: Width of a picture in pixels.

    Returns:
        (action, cell id) when one of ACTIONS was just chosen.
    """
    data: dict[str, Any] = {
        "columns": clean(list(columns)),
        "rows": [
            {"label": clean(label), "cells": [clean(asdict(one)) for one in cells]} for label, cells in rows
        ],
        "actions": [list(pair) for pair in ACTIONS],
        "cell": cell,
    }
    acted = _GRID(key=key, data=data, on_acted_change=noop).get("acted")
    return (str(acted["action"]), str(acted["cell"])) if isinstance(acted, dict) else None


def slider(left: Side, right: Side, *, key: str) -> None:
    """Two pictures over each other with a line between them: drag, arrow keys, touch."""
    _SLIDER(key=key, data={"left": clean(asdict(left)), "right": clean(asdict(right))})


def blind_pair(token: str, left: str, right: str, *, key: str) -> str | None:
    """Two pictures without names.

    Args:
        token: Of this pair; an answer to another one is none.
        left: Data address of the pixels alone.
        right: As left.
        key: Unique on the page.

    Returns:
        left, right or tie, when it was just chosen.
    """
    data = {"token": token, "pictures": [left, right]}
    voted = _ARENA(key=key, data=data, on_voted_change=noop).get("voted")
    if not isinstance(voted, dict) or voted.get("token") != token:
        return None
    return str(voted.get("outcome", ""))
