"""The adapters of a sample: choose them, set how strongly each acts, gather their trigger words."""

from dataclasses import dataclass, field, replace
from typing import Any

import streamlit as st

from registry.errors import StudioError
from registry.records import Adapter
from studio.app import shell
from studio.app.components import notice
from studio.app.components.cards import adapter_card
from studio.app.components.gallery import gallery
from studio.app.words import md
from studio.sampling.request import AdapterChoice

MIX = "sample-mix"  # list[Part] in session state
OFFERED = 12  # adapters shown in the dialog at a time


@dataclass(frozen=True)
class Part:
    """An adapter of the mix; `serial` keeps widget keys of a replaced mix apart."""

    id: str
    weight: float
    text_weight: float | None = None
    steering: dict[str, Any] = field(default_factory=dict[str, Any])  # blocks and schedule, of a picture
    serial: int = 0

    @classmethod
    def of(cls, choice: dict[str, Any]) -> "Part":
        """From an adapter of a request."""
        steering = {name: choice[name] for name in ("blocks", "schedule") if choice.get(name)}
        return cls(choice["id"], choice["weight"], choice.get("text_weight"), steering)


def mix() -> list[Part]:
    """What is chosen now."""
    return st.session_state.setdefault(MIX, [])


def set_mix(parts: list[Part]) -> None:
    """Replace the mix; its sliders begin at the given weights."""
    serial = st.session_state["mix-serial"] = st.session_state.get("mix-serial", 0) + 1
    st.session_state[MIX] = [replace(part, serial=serial) for part in parts]


def add(adapter: Adapter) -> None:
    """Put an adapter into the mix at the weight its page recommends."""
    if all(part.id != adapter.id for part in mix()):
        serial = st.session_state["mix-serial"] = st.session_state.get("mix-serial", 0) + 1
        mix().append(Part(adapter.id, adapter.recommended_weight, serial=serial))


def mixer(family: str) -> tuple[AdapterChoice, ...]:
    """Sliders for the mix, and the button that adds to it."""
    choices: list[AdapterChoice] = []
    for part in list(mix()):
        adapter = adapter_of(part.id)
        if adapter is None:
            mix().remove(part)
            continue
        choices.append(_row(part, adapter, family))
    if st.button("Add an adapter", icon=":material/add:", width="stretch"):
        pick_dialog(family)
    return tuple(choices)


def triggers() -> list[str]:
    """Trigger words of the mix."""
    words: dict[str, None] = {}
    for part in mix():
        adapter = adapter_of(part.id)
        words.update(dict.fromkeys(adapter.trigger_words if adapter else ()))
    return list(words)


def adapter_of(id: str) -> Adapter | None:
    """The adapter of a part; None when it is gone. A checkpoint (RUN@STEP) is read once a session."""
    found = shell.workspace().catalog.find(Adapter, id)
    if found is not None or "@" not in id:
        return found
    from studio.sampling.chosen import find_adapter

    key = f"checkpoint-{id}"
    if key not in st.session_state:
        try:
            st.session_state[key] = find_adapter(shell.workspace(), id)
        except StudioError as error:
            st.session_state[key] = None
            notice.leave(str(error))
    return st.session_state[key]


def _row(part: Part, adapter: Adapter, family: str) -> AdapterChoice:
    key = f"{part.id}-{part.serial}"
    with st.container(border=True, gap="xsmall"):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f"**{md(adapter.name)}**", width="stretch")
            st.button("Leave out", key=f"drop-{key}", type="tertiary", on_click=mix().remove, args=(part,))
        if adapter.family and adapter.family != family:
            st.caption(":orange[Made for another kind of base: it will not load here]")
        weight = st.slider(
            "Strength",
            -1.0,
            2.0,
            part.weight,
            0.05,
            key=f"weight-{key}",
            help="How strongly it acts (LoRA weight): 0 is off, 1 is as trained",
        )
        text_weight = None
        if "text_encoder" in adapter.targets:
            with st.popover("More", type="tertiary"):
                if st.toggle(
                    "Own strength on the text side", part.text_weight is not None, key=f"text-on-{key}"
                ):
                    start = weight if part.text_weight is None else part.text_weight
                    text_weight = st.slider("Text encoder weight", -1.0, 2.0, start, 0.05, key=f"text-{key}")
        if part.steering:
            st.caption("Its strength differs by part or step, as in the picture that it came from.")
    return AdapterChoice(id=part.id, weight=weight, text_weight=text_weight, **part.steering)


@st.dialog("Add an adapter", width="large")
def pick_dialog(family: str) -> None:
    """Search and click."""
    catalog = shell.workspace().catalog
    query = st.text_input(
        "Search",
        key="pick-query",
        type="search",
        live="200ms",
        icon=":material/search:",
        placeholder="Name, tag or trigger word",
    )
    page = catalog.search_adapters(query or "", family=family, limit=OFFERED)
    found = page.adapters
    if not found:
        st.markdown(":gray[No adapter for this base fits. Train one, or choose another base.]")
        return
    if opened := gallery([adapter_card(adapter) for adapter in found], key="pick-grid", least=150):
        add(catalog.get(Adapter, opened))
        st.rerun()
    if page.next:
        st.caption(f"{page.total - len(found):,} more: type to find them")
