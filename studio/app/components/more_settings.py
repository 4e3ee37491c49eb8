"""The form's part "More": settings that most people leave as they are."""

from typing import Any

import streamlit as st

from registry.records import Base
from studio.app import shell
from studio.sampling.checks import REFINED, is_refiner
from studio.sampling.defaults import default_guidance
from studio.sampling.request import SampleRequest
from studio.sampling.schedulers import SCHEDULERS, scheduler_names

KEPT: Any = "session"
NAMES = (
    "steps", "cfg", "scheduler", "guidance_rescale", "true_cfg", "refiner", "refiner_at", "clip_skip",
    "partial", "memory", "precision", "speed", "format", "quality",
)  # as the request names them  # fmt: skip
FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WebP"}
MEMORY = {
    "auto": "The quickest that fits",
    "fast": "All on the GPU",
    "slicing": "In pieces (slicing)",
    "model": "A model at a time (offload)",
    "group": "A block at a time (group offload)",
    "sequential": "A layer at a time (sequential offload)",
}
PRECISION = {
    "auto": "Whole, if that is quick",
    "whole": "Whole",
    "int8": "Rounded to 8 bits (int8)",
    "fp8": "Rounded to 8 bits (fp8)",
    "nf4": "Rounded to 4 bits (nf4)",
}
SPEED = {
    "plain": "As usual",
    "channels_last": "Channels last (bases with a UNet)",
    "compiled": "Compiled first",
}
GUIDED_TWICE = "flux1"  # the family that has no guidance by a negative prompt of its own
MOST_SKIPPED = 11  # layers that the smallest real CLIP can spare


def more_settings(base: Base) -> dict[str, Any]:
    """The widgets; fields of a request."""
    usual = {name: SampleRequest.model_fields[name].default for name in NAMES}
    for name, start in (usual | {"cfg": default_guidance(base)}).items():
        st.session_state.setdefault(f"s-{name}", start)
    with st.expander("More", icon=":material/tune:"):
        return _drawing(base) | _guidance(base) | _refiner(base) | _rest() | _files()


def put_back(request: dict[str, Any]) -> list[str]:
    """Fields of a request into the widgets; returns a line for a refiner that is not here."""
    for name in NAMES:
        st.session_state[f"s-{name}"] = request[name]
    if not request["refiner"] or shell.workspace().catalog.find(Base, request["refiner"]):
        return []
    return ["Its refiner is not here: add it to the bases"]


def _drawing(base: Base) -> dict[str, Any]:
    # A picture that was put back may have more than most people want: here, and of guidance.
    most = max(100, st.session_state["s-steps"])
    steps = st.slider("How many steps (inference steps)", 1, most, key="s-steps", persist_state=KEPT)
    names = scheduler_names(base.family)
    if st.session_state.get("s-scheduler") not in names:  # of another base
        st.session_state.pop("s-scheduler", None)
    scheduler = st.selectbox(
        "Sampler (scheduler)", names, key="s-scheduler", persist_state=KEPT, format_func=_spoken,
    )  # fmt: skip
    return {"steps": steps, "scheduler": scheduler}


def _spoken(scheduler: str) -> str:
    return "The base's own" if scheduler == "default" else f"{scheduler}: {SCHEDULERS[scheduler].note}"


def _guidance(base: Base) -> dict[str, Any]:
    values: dict[str, Any] = {}
    values["cfg"] = st.slider(
        "How closely to follow the prompt (guidance)", 0.0, max(20.0, float(st.session_state["s-cfg"])),
        step=0.5, key="s-cfg", persist_state=KEPT,
    )  # fmt: skip
    if base.family == GUIDED_TWICE:
        values["true_cfg"] = st.slider(
            "How closely to keep away from what to avoid (true CFG)", 1.0, 20.0, step=0.1,
            key="s-true_cfg", persist_state=KEPT,
            help="1 is off, and the negative prompt does nothing; above, steps take twice as long",
        )  # fmt: skip
    values["guidance_rescale"] = st.slider(
        "Against burnt colours (guidance rescale)", 0.0, 1.0, step=0.05, key="s-guidance_rescale",
        persist_state=KEPT, help="Takes back contrast that strong guidance adds; 0 is off, 0.7 is usual",
    )  # fmt: skip
    return values


def _refiner(base: Base) -> dict[str, Any]:
    """Only where there is one to choose."""
    known = shell.workspace().catalog.list(Base, family=REFINED) if base.family == REFINED else []
    names = {"": "None"} | {one.id: one.name for one in known if is_refiner(one)}
    if st.session_state.get("s-refiner") not in names:
        st.session_state.pop("s-refiner", None)
    if len(names) == 1:
        return {}
    refiner = st.selectbox(
        "Who draws the last steps (refiner)", list(names), format_func=names.__getitem__, key="s-refiner",
        persist_state=KEPT,
    )  # fmt: skip
    if not refiner:
        return {}
    own = st.session_state["s-refiner_at"]  # a picture that is put back may have less or more
    at = st.slider(
        "Part of the way after which it takes over", min(0.05, own), max(0.95, own), step=0.05,
        key="s-refiner_at", persist_state=KEPT,
    )  # fmt: skip
    return {"refiner": refiner, "refiner_at": at}


def _rest() -> dict[str, Any]:
    skip = st.number_input(
        "Layers of the text encoder to leave out (clip skip)", 0,
        max(MOST_SKIPPED, int(st.session_state.get("s-clip_skip") or 0)), key="s-clip_skip",
        persist_state=KEPT, help="As A1111 counts: 0 and 1 leave none out, 2 leaves out the last",
    )  # fmt: skip
    partial = st.toggle(
        "Draw with the parts of an adapter that fit", key="s-partial", persist_state=KEPT,
        help="Else an adapter of which a part has no place in the base is refused, with what is missing",
    )  # fmt: skip
    memory = st.selectbox(
        "What is kept on the GPU (memory)", list(MEMORY), format_func=MEMORY.__getitem__, key="s-memory",
        persist_state=KEPT, help="The further down, the less memory it takes, and the longer",
    )  # fmt: skip
    precision = st.selectbox(
        "How fine the base's weights are (precision)", list(PRECISION), format_func=PRECISION.__getitem__,
        key="s-precision", persist_state=KEPT,
        help="Rounded weights take half or a quarter of the memory and draw slightly other pictures",
    )  # fmt: skip
    speed = st.selectbox(
        "How it computes (speed)", list(SPEED), format_func=SPEED.__getitem__, key="s-speed",
        persist_state=KEPT,
        help="Others than usual may be quicker on a GPU; compiling takes a minute, once for each base",
    )  # fmt: skip
    kept = {"memory": memory, "precision": precision, "speed": speed}
    return {"clip_skip": skip, "partial": partial, **kept}


def _files() -> dict[str, Any]:
    format = st.segmented_control(
        "Files", list(FORMATS), format_func=FORMATS.__getitem__, key="s-format", persist_state=KEPT,
        help="Each says how its picture was made; JPEG and WebP are smaller and lose a little",
    )  # fmt: skip
    if (format or "png") == "png":
        return {"format": "png"}
    quality = st.slider("Quality of the files", 1, 100, key="s-quality", persist_state=KEPT)
    return {"format": format, "quality": quality}
