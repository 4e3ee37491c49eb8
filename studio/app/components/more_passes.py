"""The form's parts "Second, larger pass" (hires fix) and "Vary this seed" (variation)."""

import random
from typing import Any

import streamlit as st

from studio.app.components.given import panel
from studio.sampling.request_modes import HiresChoice

KEPT: Any = "session"
SEEDS = 2**32
UPSCALERS = {
    "lanczos": "Enlarge the picture (Lanczos)",
    "latent": "Enlarge what it is drawn from (latent)",
}
HIRES = tuple(HiresChoice.model_fields)


def more_passes() -> dict[str, Any]:
    """The widgets; fields of a request."""
    return _hires() | _variation()


def put_back(request: dict[str, Any]) -> None:
    """Fields of a request into the widgets."""
    hires, varied = request["hires"], request["subseed_strength"]
    st.session_state["s-hires"] = hires is not None
    st.session_state["s-open-hires"] = hires is not None
    for name, value in (HiresChoice(**hires) if hires else HiresChoice()).model_dump().items():
        st.session_state[f"s-hires_{name}"] = value
    st.session_state["s-subseed"] = request["subseed"]
    st.session_state["s-subseed_strength"] = varied
    st.session_state["s-open-vary"] = bool(varied)


def _hires() -> dict[str, Any]:
    for name, value in HiresChoice().model_dump().items():
        st.session_state.setdefault(f"s-hires_{name}", value)
    on = bool(st.session_state.get("s-hires"))
    with panel("Second, larger pass (hires fix)", ":material/zoom_out_map:", "hires", used=on):
        if not st.toggle(
            "Draw it again, larger", key="s-hires", persist_state=KEPT,
            help="First at the size above, then enlarged and drawn over: large pictures keep one composition",
        ):  # fmt: skip
            return {}
        least = min(1.1, st.session_state["s-hires_scale"])  # a picture that is put back may have less
        scale = st.slider(
            "How many times larger (scale)", least, 4.0, step=0.05, key="s-hires_scale", persist_state=KEPT
        )
        least = min(0.05, st.session_state["s-hires_strength"])
        strength = st.slider(
            "How much the second pass may change (denoising strength)", least, 1.0, step=0.01,
            key="s-hires_strength", persist_state=KEPT,
        )  # fmt: skip
        upscaler = st.selectbox(
            "How it is enlarged (upscaler)", list(UPSCALERS), format_func=UPSCALERS.__getitem__,
            key="s-hires_upscaler", persist_state=KEPT,
            help="Latent is faster and needs a strength above 0.5",
        )  # fmt: skip
        steps = st.number_input(
            "Steps of the second pass", 0, 500, key="s-hires_steps", persist_state=KEPT,
            help="0: as many as the first",
        )  # fmt: skip
    return {"hires": {"scale": scale, "strength": strength, "upscaler": upscaler, "steps": int(steps or 0)}}


def _variation() -> dict[str, Any]:
    used = bool(st.session_state.get("s-subseed_strength"))
    with panel("Vary this seed (variation)", ":material/shuffle:", "vary", used=used):
        strength = st.slider(
            "How far from the picture of the seed (variation strength)", 0.0, 1.0, step=0.01,
            key="s-subseed_strength", persist_state=KEPT,
            help="0 is the seed's own picture, 1 that of the other seed; lock the seed to vary one picture",
        )  # fmt: skip
        with st.container(horizontal=True, vertical_alignment="bottom"):
            subseed = st.number_input(
                "Towards the seed (variation seed)", 0, SEEDS - 1, key="s-subseed", persist_state=KEPT,
                width="stretch",
            )  # fmt: skip
            st.button(
                "Dice", icon=":material/casino:", key="s-subseed-dice", help="Another one", on_click=_dice
            )
    return {"subseed": int(subseed or 0), "subseed_strength": strength}


def _dice() -> None:
    st.session_state["s-subseed"] = random.randrange(SEEDS)
