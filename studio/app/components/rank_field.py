"""How much a new adapter may hold: the same rank for all parts, or as much as each needs."""

from typing import TYPE_CHECKING

import streamlit as st

if TYPE_CHECKING:
    from registry.formats.operations.ranks import RankRule

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


def rank_field(start: int, *, key: str) -> "RankRule":
    """The rule that is chosen.

    Args:
        start: Rank to begin with.
        key: Unique on the page.
    """
    from registry.formats.operations.ranks import RankRule

    way = st.radio("How large", list(WAYS), format_func=WAYS.__getitem__, captions=CAPTIONS, key=f"{key}-way")
    share, ratio, limit = 0.0, 0.0, True
    if way == "share":
        share = st.slider("Share that is kept", 50, 99, 95, format="%d %%", key=f"{key}-share") / 100
    elif way == "ratio":
        ratio = float(st.slider("Down to 1 / this of the strongest", 2, 100, 10, key=f"{key}-ratio"))
    if way != "fixed":
        limit = st.toggle("At most a certain rank", key=f"{key}-limit")
    rank = int(st.number_input("Rank", 1, 4096, start, key=f"{key}-rank")) if limit else 0
    return RankRule(rank, sv_ratio=ratio, sv_fro=share)
