"""A mix of adapters as a file: saved from the Sample page, dropped on it."""

from collections.abc import Sequence

import streamlit as st

from registry.records import Base
from studio.app import shell
from studio.app.components import mix
from studio.sampling.request import AdapterChoice

FILE = "mix.json"


def mix_file(base: Base, choices: Sequence[AdapterChoice]) -> None:
    """Where a mix is saved and taken in."""
    with st.popover("Mix as a file", icon=":material/tune:", width="stretch"):
        if choices:
            from studio.sampling.mixes import mix_text

            st.download_button(
                "Save this mix",
                lambda: mix_text(shell.workspace(), base, choices),
                FILE,
                "application/json",
                icon=":material/download:",
                on_click="ignore",
                help="Adapters, strengths and the hashes of their weights",
            )
        dropped = st.file_uploader(
            "Drop a mix to use it", ["json"], key="s-mix-file", help="It takes the place of what is chosen"
        )
        mark = dropped and (dropped.file_id, dropped.name)
        if dropped is None or st.session_state.get("mix-taken") == mark:
            return
        st.session_state["mix-taken"] = mark
        with shell.guarded():
            from studio.sampling.mixes import MAX_BYTES, read_mix

            text = dropped.getvalue()[:MAX_BYTES].decode("utf-8", "replace")
            chosen = read_mix(shell.workspace(), text, dropped.name, base.family)
            mix.set_mix([mix.Part.of(choice.model_dump()) for choice in chosen])
            st.rerun()
