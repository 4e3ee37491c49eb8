"""Another capacity: the same for all parts, or as much as each needs."""

from typing import TYPE_CHECKING

import streamlit as st

from registry.records import Adapter
from studio.app.components.make_common import Told, free_name, make_adapter, name_field
from studio.app.components.needed_base import base_field
from studio.app.components.rank_field import rank_field
from studio.app.shell import workspace

if TYPE_CHECKING:
    from registry.formats.operations.ranks import RankRule


@st.dialog("Make it smaller", width="medium", icon=":material/compress:")
def resize_dialog(adapter: Adapter) -> None:
    """Choose a rule, make it, open the result."""
    resize_form(adapter)


def resize_form(adapter: Adapter) -> None:
    """What the dialog shows."""
    st.caption("A new adapter with another rank; this one stays. Its page says how far it is off.")
    name = name_field(free_name(f"{adapter.name[:90]} small"), key="resize-name")
    rule = rank_field(min(4096, max(1, adapter.rank // 2)), key="resize")
    base = base_field([adapter], key="resize-base")
    if st.button("Make it", type="primary", key="resize-go", disabled=not name):
        make_adapter(lambda tell: _resized(adapter, name, rule, base, tell))


def _resized(adapter: Adapter, name: str, rule: "RankRule", base: str, tell: Told) -> Adapter:
    from studio.operations import resize

    return resize(workspace(), adapter.id, rule, name=name, base=base, progress=tell).adapter
