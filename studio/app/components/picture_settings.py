"""A dropped picture's own settings, put into the form of the Sample page."""

import tempfile
from pathlib import Path
from typing import Any

import streamlit as st

from studio.app import shell
from studio.app.components.sample_form import put_back
from studio.app.words import spoken

# What the form holds, or what follows from it.
FORM = frozenset(
    {"base", "adapters", "partial", "prompt", "negative", "steps", "cfg", "seed", "width", "height",
     "scheduler", "count", "clip_skip", "guidance_rescale", "template", "negative_template", "resolved",
     "embeddings", "format", "image", "strength", "mask", "mask_blur", "mask_content", "only_masked",
     "mask_padding", "keep_unmasked", "controls", "hires", "subseed", "subseed_strength"}
)  # fmt: skip


def picture_settings() -> None:
    """Where a picture is dropped for its settings."""
    with st.popover("Settings of a picture", icon=":material/image_search:"):
        dropped = st.file_uploader(
            "Drop a picture that says how it was made",
            ["png", "jpg", "jpeg", "webp"],
            key="s-like",
            help="Pictures of this studio, and of A1111, Forge and others that write its parameters",
        )
        mark = dropped and (dropped.file_id, dropped.name)
        if dropped is None or st.session_state.get("like-taken") == mark:
            return
        st.session_state["like-taken"] = mark
        with shell.guarded():
            request = _read(dropped.name, dropped.getvalue())
            said = ""
            if more := left_out(request):
                names = ", ".join(spoken(name).lower() for name in more)
                said = (
                    f"This page has no place for: {names}. On the command line, sample --from draws with it."
                )
            put_back(request, said=said)
            st.rerun()


def left_out(request: dict[str, Any]) -> list[str]:
    """Settings of a request that differ from the usual and that the form does not show."""
    from studio.sampling.request import SampleRequest

    usual = SampleRequest(base=request["base"]).model_dump()
    return sorted(name for name in usual.keys() - FORM if request.get(name) != usual[name])


def _read(name: str, data: bytes) -> dict[str, Any]:
    from studio.sampling.again import request_of

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(name).name
        path.write_bytes(data)
        return request_of(shell.workspace(), path).model_dump()
