"""Two components in plain JavaScript: cards with pictures, and previews over time."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import streamlit as st
from streamlit.components.v2 import component

from studio.app.words import printable

HERE = Path(__file__).parent


def read_asset(name: str) -> str:
    """Text of a file beside this one."""
    return (HERE / name).read_text(encoding="utf-8")


_LIGHTBOX = read_asset("lightbox.js")
_GALLERY = component(
    "lora_studio_gallery",
    html='<div id="grid"></div>',
    css=read_asset("gallery.css"),
    js=_LIGHTBOX + read_asset("gallery.js"),
)
_FILM = component(
    "lora_studio_film",
    html='<div id="film" tabindex="0"></div>',
    css=read_asset("film.css"),
    js=_LIGHTBOX + read_asset("film.js"),
)


@dataclass(frozen=True, kw_only=True)
class Card:
    """One card; every text is shown as text, whatever it contains."""

    id: str
    title: str = ""
    lines: tuple[str, ...] = ()
    images: tuple[str, ...] = ()  # URLs of our own routes; up to 4
    badges: tuple[tuple[str, str], ...] = ()  # text, tone: "", accent, good, warn, bad
    selected: bool = False
    favourite: bool = False  # a heart in the corner
    zoom: str = ""  # URL of the picture at full size
    zoom_text: str = ""
    alt: str = ""
    label: str = ""  # for screen readers; default: title
    placeholder: str = ""  # where there is no picture
    action: str = ""  # label of a button below
    sound: str = ""  # URL of what is played below
    file: str = ""  # URL of what is saved by a link below
    file_text: str = ""


@dataclass(frozen=True)
class Frame:
    """One picture of a film strip."""

    url: str
    zoom: str
    label: str  # "step 250"
    text: str  # beside the large picture
    base: bool = False  # drawn without the adapter


def gallery(
    cards: Sequence[Card],
    *,
    key: str,
    opens: bool = True,
    least: int = 190,
    ratio: str = "1 / 1",
    fit: str = "cover",
    framed: bool = True,
    picking: bool = False,
    on_heart: Callable[[str], None] | None = None,
) -> str | None:
    """Cards in a grid; returns the id of the card that was just clicked.

    Args:
        cards: What to show; the caller has already chosen the page of results.
        key: Unique on the page.
        opens: Whether a click is reported; False = a click shows the picture at full size.
        least: Smallest width of a card in pixels; 0 = one column.
        ratio: CSS aspect ratio of the pictures.
        fit: "cover" crops to the ratio, "contain" shows the whole picture.
        framed: Whether cards have a border.
        picking: Show a check mark on each card: clicks choose instead of opening.
        on_heart: Called with the id of a card whose heart was clicked; None = hearts only show.
    """
    data: dict[str, Any] = {
        "cards": [clean(asdict(card)) for card in cards],
        "opens": opens,
        "least": least,
        "ratio": ratio,
        "fit": fit,
        "framed": framed,
        "picking": picking,
        "hearts": on_heart is not None,
    }
    happened = _GALLERY(
        key=key, data=data, on_opened_change=noop, on_hearted_change=noop, on_acted_change=noop
    )
    if on_heart is not None and (hearted := happened.get("hearted")):
        on_heart(hearted)
    return happened.get("opened")


def pressed(key: str) -> str | None:
    """Id of the card whose button below was pressed last, until `answered`.

    Asked at the start of the script. What it leads to may be cut short by the next click and is then done in
    the next run, which a trigger or a callback would not be: a rerun that is asked for meanwhile ends both.
    """
    acted = (st.session_state.get(key) or {}).get("acted")
    if not isinstance(acted, dict) or acted.get("at") == st.session_state.get(f"{key}-answered"):
        return None
    return str(acted.get("card", ""))


def answered(key: str) -> None:
    """What the button is for has been done."""
    st.session_state[f"{key}-answered"] = st.session_state[key]["acted"]["at"]


def film(rows: Sequence[tuple[str, Sequence[Frame]]], *, key: str) -> None:
    """Previews over time: (prompt, frames) per row; a click shows a picture at full size."""
    data = [
        {"prompt": printable(prompt), "cells": [clean(asdict(frame)) for frame in frames]}
        for prompt, frames in rows
    ]
    _FILM(key=key, data={"rows": data})


def noop() -> None:
    """A callback, even an empty one, is what makes the component report an event."""


def clean(value: Any) -> Any:
    """A value for a component, its texts without control characters."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {name: clean(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    return value
