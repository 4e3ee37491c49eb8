"""The form of the Sample page for bases that make video, sound or 3D: only what their kind has."""

from collections.abc import Callable
from typing import Any

import streamlit as st

from registry.records import Base
from studio.app import shell
from studio.app.components.given import field
from studio.app.components.more_settings import MEMORY
from studio.app.components.start_picture import START
from studio.sampling.media.kinds import ANIMATES, KINDS, Kind, Setting
from studio.sampling.media.requests import MEMORY as WAYS
from studio.sampling.media.requests import configs_of, limit_of, media_values, usual

KEPT: Any = "session"
MOTION = "s-motion"
OWN = "the base's own"


def motion_choice(base: Base) -> str:
    """Id of a motion adapter for a base for pictures, where there is one to choose; "" = none."""
    from studio.bases import list_motions

    known = [] if base.part or base.family != ANIMATES else list_motions(shell.workspace(), base.family)
    names = {"": "Pictures"} | {one.id: f"A video, moved by {one.name}" for one in known}
    if st.session_state.get(MOTION) not in names:
        st.session_state.pop(MOTION, None)
    if len(names) == 1:
        return ""
    return st.selectbox(
        "What to make", list(names), format_func=names.__getitem__, key=MOTION, persist_state=KEPT
    )


def media_form(base: Base, name: str, motion: str, words: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The widgets above seed and number; fields of a request.

    Args:
        base: What makes it.
        name: Its kind.
        motion: Id of the motion adapter, if any.
        words: The fields for prompt and negative prompt.
    """
    kind, workspace = KINDS[name], shell.workspace()
    values = media_values(workspace, base, {"motion": motion} if motion else {})
    if "prompt" in kind.takes:
        said = words()
        values |= {field_: text for field_, text in said.items() if field_ in kind.takes}
    if "image" in kind.takes:
        values["image"] = field(START, "Picture to start from", help="PNG, JPEG or WebP")
    if kind.sized:
        values |= _size(name, values)
    return values | {"settings": _settings(base, name, kind, motion)}


def media_more(name: str) -> dict[str, Any]:
    """What most people leave; fields of a request."""
    kind = KINDS[name]
    with st.expander("More", icon=":material/tune:"):
        steps = _kept(name, "steps", kind.steps)
        values: dict[str, Any] = {
            "steps": st.slider(
                "How many steps (inference steps)", 1, max(200, kind.steps, st.session_state[steps]),
                key=steps, persist_state=KEPT,
            )
        }  # fmt: skip
        cfg = _kept(name, "cfg", kind.cfg)
        values["cfg"] = st.slider(
            "How closely to follow (guidance)", 0.0, max(20.0, float(st.session_state[cfg])), step=0.5,
            key=cfg, persist_state=KEPT,
        )  # fmt: skip
        if "quality" in kind.takes:
            quality = _kept(name, "quality", 92)
            values["quality"] = st.slider(
                "Quality of the file (100 loses nothing)", 1, 100, key=quality, persist_state=KEPT
            )
        memory = _kept(name, "memory", "auto")
        values["memory"] = st.selectbox(
            "What is kept on the GPU (memory)", WAYS, format_func=MEMORY.__getitem__, key=memory,
            persist_state=KEPT,
        )  # fmt: skip
    return values


def put_back(request: dict[str, Any]) -> list[str]:
    """Fields of a request into the widgets; returns a line for a motion adapter that is not here."""
    name = request["kind"]
    if (kind := KINDS.get(name)) is None:
        return [f"This version cannot make it again: it knows no {name}"]
    for own in ("steps", "cfg", "quality", "memory", "width", "height"):
        st.session_state[f"m-{name}-{own}"] = request[own]
    for item in kind.settings:
        st.session_state[f"m-{name}-{item.name}"] = _typed(item, request["settings"].get(item.name))
    motion = request["motion"]
    st.session_state[MOTION] = motion
    if not motion or shell.workspace().catalog.find(Base, motion):
        return []
    return ["Its motion adapter is not here: add it to the bases"]


def _kept(name: str, field_: str, start: Any) -> str:
    """Key of a widget that starts at `start`; each kind has its own."""
    key = f"m-{name}-{field_}"
    st.session_state.setdefault(key, start)
    return key


def _size(name: str, values: dict[str, Any]) -> dict[str, int]:
    sides = zip(("width", "height"), st.columns(2), strict=True)
    return {
        side: int(
            column.number_input(
                side.capitalize(), 16, 4096, step=8, key=_kept(name, side, values[side]),
                persist_state=KEPT,
            )
        )
        for side, column in sides
    }  # fmt: skip


def _settings(base: Base, name: str, kind: Kind, motion: str) -> dict[str, float]:
    workspace = shell.workspace()
    configs = configs_of(workspace, base, workspace.catalog.get(Base, motion) if motion else None)
    start = usual(kind, configs)
    found: dict[str, float] = {}
    for item in kind.settings:
        key = _kept(name, item.name, _typed(item, start.get(item.name)))
        most = max(limit_of(item, configs), st.session_state[key] or 0)  # what is too much is refused later
        number: Any = int if item.whole else float
        value = st.number_input(
            item.label, number(item.least), number(most), step=number(item.step) if item.whole else None,
            key=key, placeholder=OWN, persist_state=KEPT,
        )  # fmt: skip
        if value is not None:
            found[item.name] = value
    return found


def _typed(item: Setting, value: float | None) -> float | None:
    """As its widget has it."""
    if value is None:
        return None
    return int(value) if item.whole else float(value)
