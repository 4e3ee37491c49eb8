"""A brush over a picture: paints the part that is to change, in plain JavaScript (brush.js)."""

from typing import Any

import streamlit as st
from streamlit.components.v2 import component

from studio.app.components.gallery import read_asset
from studio.app.components.given import SHOWN, Given
from studio.app.words import printable

_KEPT = "brush-kept"  # (hash of the picture, data URL): what was painted outlasts a change of page
_BRUSH = component(
    "lora_studio_brush",
    html=read_asset("brush.html"),
    css=read_asset("brush.css"),
    js=read_asset("brush.js"),
)


def brush(picture: Given, *, key: str) -> str:
    """Show the picture with a brush.

    Args:
        picture: What is painted on.
        key: Unique on the page.

    Returns:
        The mask as a PNG data URL, white = painted, of the picture's shape and at most SHOWN pixels; "" when
        nothing is painted.
    """
    mark, kept = st.session_state.get(_KEPT, ("", ""))
    kept = kept if mark == picture.mark else ""
    shrink = min(1.0, SHOWN / max(picture.width, picture.height))
    data = {
        "id": picture.mark,
        "picture": picture.shown,
        "name": printable(picture.called),
        "width": max(1, round(picture.width * shrink)),
        "height": max(1, round(picture.height * shrink)),
        "mask": kept,
    }
    painted = _BRUSH(key=key, data=data, on_painted_change=_noop).get("painted")
    if (said := _mask_of(painted, picture)) is not None:
        kept = said
    st.session_state[_KEPT] = (picture.mark, kept)
    return kept


def _mask_of(painted: Any, picture: Given) -> str | None:
    """What the browser says, if it is about this picture."""
    if not isinstance(painted, dict) or painted.get("id") != picture.mark:
        return None
    return str(painted.get("mask", ""))


def _noop() -> None:
    """A callback, even an empty one, is what makes the component report its state."""
