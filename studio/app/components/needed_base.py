"""The base that DoRA and OFT are read with: their change depends on its weights."""

from collections.abc import Sequence

import streamlit as st

from registry.records import Adapter, Base
from studio.app import shell
from studio.exporting import WITH_BASE


def base_field(adapters: Sequence[Adapter], *, key: str) -> str:
    """Id of the chosen base; "" when no adapter needs one, or none is chosen."""
    needing = [adapter for adapter in adapters if adapter.method in WITH_BASE]
    if not needing:
        return ""
    found = shell.workspace().catalog.list(Base, family=needing[0].family, part="")
    bases = {base.id: base for base in found}
    if not bases:
        st.warning("It needs a base of its family, and there is none: add one on the page Bases.")
        return ""
    own = {adapter.base_id for adapter in needing}
    known = next((place for place, id in enumerate(bases) if id in own), None)
    chosen = st.selectbox(
        "The base that it was trained on",
        list(bases),
        index=known,
        format_func=lambda id: bases[id].name,
        key=key,
        placeholder="choose a base",
        help="What it changes depends on the weights of its base.",
    )
    return chosen or ""
