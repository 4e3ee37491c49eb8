"""A dropped picture's own settings, put into the form of the Sample page."""

import tempfile
from pathlib import Path
from typing import Any

import streamlit as st

from studio.app import shell
from studio.app.components.sample_form import put_back


def picture_settings() -> None:
    """Where a picture is dropped for its settings."""
    with st.popover("Settings of a picture", icon=":material/image_search:"):
        dropped = st.file_uploader(
            "Drop a picture that says how it was made",
            ["png", "jpg", "jpeg", "webp", "wav", "ply"],
            key="s-like",
            help="Pictures of this studio, and of A1111, Forge and others that write its parameters; also "
            "videos, sounds and meshes of this studio",
        )
        mark = dropped and (dropped.file_id, dropped.name)
        if dropped is None or st.session_state.get("like-taken") == mark:
            return
        st.session_state["like-taken"] = mark
        with shell.guarded():
            put_back(_read(dropped.name, dropped.getvalue()))
            st.rerun()


def _read(name: str, data: bytes) -> dict[str, Any]:
    from studio.sampling.again import request_of

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(name).name
        path.write_bytes(data)
        return request_of(shell.workspace(), path).model_dump()
