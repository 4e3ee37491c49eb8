"""The form's part "Steer by a picture": up to three pictures that steer the drawing (ControlNet)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import streamlit as st

from registry.errors import StudioError
from registry.records import Base
from studio.app import shell
from studio.app.components import given
from studio.app.words import md
from studio.sampling.control.choosing import automatic, readers
from studio.sampling.control.kinds import KINDS
from trainers.families import FAMILIES

KEPT: Any = "session"
ROWS = "sample-controls"  # list[Row] in session state
MOST = 3
TITLES = {
    "canny": "Edges", "lineart": "Lines", "softedge": "Soft edges", "scribble": "Scribble", "depth": "Depth",
    "pose": "Pose", "tile": "Detail", "blur": "Blurred", "gray": "Without colour",
    "inpaint": "Around the mask", "none": "A finished map",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One picture that steers; `serial` keeps its widgets apart from those of a row before."""

    serial: int
    model: str = ""  # that a picture which was put back named
    more: dict[str, Any] = field(
        default_factory=dict[str, Any]
    )  # of a picture: what the form has no field for

    @property
    def slot(self) -> str:
        """Of its picture."""
        return f"control-{self.serial}"


def control_pictures(base: Base) -> list[dict[str, Any]]:
    """The widgets; fields of `ControlChoice`, with `Given` for pictures."""
    from studio.bases import list_parts

    nets = list_parts(shell.workspace(), base.family)
    rows = _rows()
    with given.panel("Steer by a picture (ControlNet)", ":material/gesture:", "control", used=bool(rows)):
        if not nets:
            label = FAMILIES[base.family].label
            st.markdown(
                f":gray[There is no network for {md(label)} here yet. Add a ControlNet or T2I-Adapter for it "
                "on the page of the bases.]"
            )
            shell.link("bases", "Bases", icon=":material/layers:")
        found = [_row(base, nets, row) for row in rows]
        if nets and len(rows) < MOST:
            another = "Another picture that steers" if rows else "A picture that steers"
            st.button(another, icon=":material/add:", width="stretch", on_click=_add)
    return found


def put_back(choices: Sequence[dict[str, Any]]) -> list[str]:
    """Controls of a request; returns a line for each picture that is not here."""
    missing: list[str] = []
    rows: list[Row] = []
    for choice in choices:
        more = {name: choice[name] for name in ("preprocessor", "guess") if choice.get(name)}
        row = Row(_serial(), choice.get("model", ""), more)
        rows.append(row)
        values = {name: choice[name] for name in ("kind", "weight")}
        values |= {"way": (choice["start"], choice["end"]), "map": not choice["preprocess"]}
        for name, value in values.items():
            st.session_state[f"c-{name}-{row.serial}"] = value
        try:
            given.put(row.slot, given.of_sample(choice["image"]))
        except StudioError:
            missing.append(f"Its picture for {choice['kind']} is not here: drop it into “Steer by a picture”")
    for row in _rows():
        given.put(row.slot, None)
    st.session_state[ROWS] = rows
    st.session_state["s-open-control"] = bool(rows)
    return missing


def _rows() -> list[Row]:
    return st.session_state.setdefault(ROWS, [])


def _serial() -> int:
    serial = st.session_state["control-serial"] = st.session_state.get("control-serial", 0) + 1
    return serial


def _add() -> None:
    _rows().append(Row(_serial()))


def _drop(row: Row) -> None:
    given.put(row.slot, None)
    st.session_state[ROWS] = [other for other in _rows() if other != row]


def _row(base: Base, nets: list[Base], row: Row) -> dict[str, Any]:
    key = f"c-{{}}-{row.serial}".format
    kinds = [kind for kind in KINDS if readers(nets, base.family, kind)]
    asked = st.session_state.get(key("kind"))
    if asked is not None and asked not in kinds:
        kinds.append(asked)  # of a picture that was put back; what is missing is said below
    with st.container(border=True, gap="small"):
        with st.container(horizontal=True, vertical_alignment="bottom"):
            kind = st.selectbox(
                "What is taken from it (kind)", kinds, key=key("kind"), persist_state=KEPT,
                format_func=lambda name: f"{TITLES.get(name, name)} ({name})", help=_kinds_help(kinds),
                width="stretch",
            )  # fmt: skip
            st.button("Leave out", key=key("drop"), type="tertiary", on_click=_drop, args=(row,))
        model = _network(base, nets, row, kind)
        picture = given.field(
            row.slot, "Picture", help="It is scaled to cover the size, then cut in the middle"
        )
        st.session_state.setdefault(key("weight"), 1.0)
        weight = st.slider(
            "How strongly it steers (weight)", 0.0, max(2.0, st.session_state[key("weight")]), step=0.05,
            key=key("weight"), persist_state=KEPT,
        )  # fmt: skip
        st.session_state.setdefault(key("way"), (0.0, 1.0))
        start, end = st.slider(
            "During which part of the steps (start, end)", 0.0, 1.0, step=0.01, key=key("way"),
            persist_state=KEPT, help="Let go early, at 0.6 or so, and the details are free",
        )  # fmt: skip
        finished = st.toggle(
            "It is a finished map already", key=key("map"), persist_state=KEPT,
            help="As other programs save them: white lines on black, a grey picture of depth",
        )  # fmt: skip
        if row.more:
            st.caption("Further settings of its control are kept, as in the picture that it came from.")
    return {
        "kind": kind, "model": model, "image": picture, "weight": weight, "start": start, "end": end,
        "preprocess": not finished, **row.more,
    }  # fmt: skip


def _network(base: Base, nets: list[Base], row: Row, kind: str) -> str:
    """Id of the network; asked for when several can read the kind."""
    found = {net.id: net for net in readers(nets, base.family, kind)}
    found |= {net.id: net for net in nets if net.id == row.model}
    if not found:
        label = FAMILIES[base.family].label
        st.caption(
            f":orange[No network for {md(label)} here reads {md(kind)}: choose another kind, or add one]"
        )
        return ""
    if len(found) == 1:
        return next(iter(found))
    own = automatic(nets, base.family, kind)
    start = row.model if row.model in found else own[0].id if own else next(iter(found))
    return st.selectbox(
        "Network (ControlNet)", list(found), list(found).index(start), key=f"c-net-{kind}-{row.serial}",
        format_func=lambda net: found[net].name,
    )  # fmt: skip


def _kinds_help(kinds: Sequence[str]) -> str:
    return "  \n".join(f"**{TITLES.get(name, name)}**: {md(KINDS[name].about)}" for name in kinds)
