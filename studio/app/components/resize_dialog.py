"""Another capacity: the same for all parts, or as much as each needs."""

import streamlit as st

from registry.records import Adapter
from studio.app.components.make_common import Told, free_name, name_field, with_progress
from studio.app.components.needed_base import base_field
from studio.app.shell import workspace

WAYS = {
    "fixed": "The same rank everywhere",
    "share": "As small as each part allows",
    "ratio": "Without what is much weaker than the strongest",
}
CAPTIONS = (
    "A known size of the file",
    "Keeps a share of the change, for instance 95 %",
    "Keeps directions down to a fraction of the strongest one",
)


@st.dialog("Make it smaller", width="medium", icon=":material/compress:")
def resize_dialog(adapter: Adapter) -> None:
    """Choose a rule, make it, open the result."""
    resize_form(adapter)


def resize_form(adapter: Adapter) -> None:
    """What the dialog shows."""
    st.caption("A new adapter with another rank; this one stays. Its page says how far it is off.")
    name = name_field(free_name(f"{adapter.name[:90]} small"), key="resize-name")
    way = st.radio("How", list(WAYS), format_func=WAYS.__getitem__, captions=CAPTIONS, key="resize-way")
    share, ratio, limit = 0.0, 0.0, True
    if way == "share":
        share = st.slider("Share that is kept", 50, 99, 95, format="%d %%", key="resize-share") / 100
    elif way == "ratio":
        ratio = float(st.slider("Down to 1 / this of the strongest", 2, 100, 10, key="resize-ratio"))
    if way != "fixed":
        limit = st.toggle("At most a certain rank", key="resize-limit")
    rank = 0
    if limit:
        rank = int(st.number_input("Rank", 1, 4096, min(4096, max(1, adapter.rank // 2)), key="resize-rank"))
    base = base_field([adapter], key="resize-base")
    if st.button("Make it", type="primary", key="resize-go", disabled=not name):
        with_progress(lambda tell: _resized(adapter, name, (rank, ratio, share), base, tell))


def _resized(
    adapter: Adapter, name: str, numbers: tuple[int, float, float], base: str, tell: Told
) -> Adapter:
    from registry.formats.operations.ranks import RankRule
    from studio.operations import resize

    rank, ratio, share = numbers
    rule = RankRule(rank, sv_ratio=ratio, sv_fro=share)
    return resize(workspace(), adapter.id, rule, name=name, base=base, progress=tell).adapter
