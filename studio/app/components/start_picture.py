"""The form's part "From a picture": all of it anew, a part of it, more at its sides, or larger.

A part is painted with the brush, or given as a mask in a file.
"""

from typing import Any

import streamlit as st

from registry.errors import StudioError
from studio.api.pictures import picture_bytes
from studio.app.components.brush import brush
from studio.app.components.given import Given, current, field, of_sample, panel, put
from studio.sampling.request import SampleRequest

KEPT: Any = "session"
START, MASK = "start", "mask"
CONTENTS = {
    "original": "The picture as it is (original)",
    "fill": "The colours around it (fill)",
    "noise": "Noise (latent noise)",
    "nothing": "Nothing (latent nothing)",
}
NUMBERS = ("strength", "mask_blur", "mask_content", "only_masked", "mask_padding", "keep_unmasked")
MOST_OVERLAP = 512  # that a request takes
SIDES = ("left", "top", "right", "bottom")
FOLLOW = "s-follow"  # whether the size follows the picture


def start_picture(tile: int) -> dict[str, Any]:
    """The widgets; fields of a request, with `Given` for pictures. Empty without a picture.

    Args:
        tile: Pixels on a side of what the base draws at once.
    """
    usual = {name: SampleRequest.model_fields[name].default for name in NUMBERS}
    for name, value in (usual | dict.fromkeys(SIDES, 0) | {"upscale_scale": 2.0}).items():
        st.session_state.setdefault(f"s-{name}", value)
    with panel(
        "From a picture (image to image)", ":material/image:", "start", used=current(START) is not None
    ):
        painting = current(START) is not None and st.session_state.get("s-part") and current(MASK) is None
        given = field(
            START,
            "Picture to start from",
            show=not painting,
            then=_another,
            help="It is scaled to cover the size of the new one, then cut in the middle",
        )
        if given is None:
            return {}
        strength = st.slider(
            "How much may change (denoising strength)",
            0.0,
            1.0,
            step=0.01,
            key="s-strength",
            persist_state=KEPT,
            help="0 leaves the picture as it is, 1 draws all of it anew",
        )
        values: dict[str, Any] = {"image": given, "strength": strength}
        if st.toggle(
            "Enlarge it in tiles (upscale)", key="s-upscale", persist_state=KEPT,
            help="Draws it anew piece by piece, larger; a strength of 0.2 to 0.4 keeps what is on it",
        ):  # fmt: skip
            return values | {"upscale": _enlarged(tile)}
        part = st.toggle("Change only a part (inpaint)", key="s-part", persist_state=KEPT)
        if part:
            values["mask"] = _mask(given)
        sides = st.toggle("Add to its sides (outpaint)", key="s-sides", persist_state=KEPT)
        if sides:
            values["outpaint"] = _sides()
        if part or sides:
            values |= _seam()
    return values


def use(given: Given) -> None:
    """Start from this picture; before any widget is made."""
    put(START, given)
    st.session_state["s-open-start"] = True
    _another()


def put_back(request: dict[str, Any]) -> list[str]:
    """Pictures and numbers of a request; returns a line for each picture that is not here."""
    missing: list[str] = []
    for name in NUMBERS:
        st.session_state[f"s-{name}"] = request[name]
    for slot, name, words in ((START, "image", "picture to start from"), (MASK, "mask", "mask")):
        put(slot, None)
        if not (path := request[name]):
            continue
        try:
            put(slot, of_sample(path, mask=slot == MASK))
        except StudioError:
            missing.append(f"Its {words} is not here: drop it into “From a picture”")
    st.session_state["s-part"] = bool(request["mask"])
    st.session_state["s-sides"] = any(request["outpaint"])
    st.session_state["s-upscale"] = request["upscale"] is not None
    for side, pixels in zip(SIDES, request["outpaint"], strict=True):
        st.session_state[f"s-{side}"] = pixels
    for name, value in (request["upscale"] or {}).items():
        st.session_state[f"s-upscale_{name}"] = value
    st.session_state[FOLLOW] = False  # a picture's settings say its size
    st.session_state["s-open-start"] = bool(request["image"])
    return missing


def _another() -> None:
    """What belonged to the picture before does not fit this one."""
    put(MASK, None)
    st.session_state[FOLLOW] = True


def _enlarged(tile: int) -> dict[str, Any]:
    """How much, and how tiles meet."""
    least = min(1.1, st.session_state["s-upscale_scale"])  # a picture that is put back may have less
    scale = st.slider(
        "How many times larger (scale)", least, 8.0, step=0.1, key="s-upscale_scale", persist_state=KEPT
    )
    key, most = "s-upscale_overlap", min(tile // 2, MOST_OVERLAP)
    st.session_state[key] = min(st.session_state.get(key, tile // 8), most)
    overlap = st.slider(
        "Pixels that tiles share (overlap)", 0, most, key=key, persist_state=KEPT,
        help="Neighbours are blended there; half a tile at most",
    )  # fmt: skip
    return {"scale": scale, "overlap": overlap}


def _sides() -> tuple[int, ...]:
    """Pixels to add: left, top, right, bottom."""
    fields = zip(SIDES, (*st.columns(2), *st.columns(2)), strict=True)
    return tuple(
        int(column.number_input(f"Pixels {side}", 0, 2048, step=16, key=f"s-{side}", persist_state=KEPT) or 0)
        for side, column in fields
    )


def _mask(given: Given) -> Given | None:
    """Which part; None as long as nothing is painted."""
    if current(MASK) is not None:
        return field(MASK, "Mask", mask=True)
    mask: Given | None = None
    if painted := brush(given, key="s-brush"):
        mask = Given("mask.png", given.width, given.height, data=picture_bytes(painted, "mask"))
    with st.popover("Mask as a file", icon=":material/contrast:"):
        field(MASK, "White is drawn anew", mask=True, help="A picture of the same shape, in black and white")
    return mask


def _seam() -> dict[str, Any]:
    """How what is new meets what stays."""
    blur = st.slider(
        "Soft edge in pixels (mask blur)", 0, 256, key="s-mask_blur", persist_state=KEPT,
        help="How wide the seam between old and new is",
    )  # fmt: skip
    content = st.selectbox(
        "What the part starts from (masked content)", list(CONTENTS), format_func=CONTENTS.__getitem__,
        key="s-mask_content", persist_state=KEPT,
    )  # fmt: skip
    only = st.toggle(
        "Only the part, at full size (only masked)", key="s-only_masked", persist_state=KEPT,
        help="Draws a crop around the part with all pixels of the size, and puts it back: for small things",
    )  # fmt: skip
    values = {"mask_blur": blur, "mask_content": content, "only_masked": only}
    if only:
        values["mask_padding"] = st.slider(
            "Pixels around it that are seen (padding)", 0, 1024, key="s-mask_padding", persist_state=KEPT
        )
    values["keep_unmasked"] = st.toggle(
        "Keep the rest to the pixel", key="s-keep_unmasked", persist_state=KEPT,
        help="Off: the rest is as the model draws it again, a little different",
    )  # fmt: skip
    return values
