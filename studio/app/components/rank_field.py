"""How much a new adapter may hold: the same rank for all parts, or as much as each needs."""

from typing import TYPE_CHECKING

import streamlit as st

if TYPE_CHECKING:
    from registry.formats.operations.ranks import RankRule

WAYS = {
    "fixed": "The same rank everywhere",
    "share": "As small as each part allows (sv_fro)",
    "sum": "As small as each part allows, by the sum (sv_cumulative)",
    "ratio": "Without what is much weaker than the strongest (sv_ratio)",
}
CAPTIONS = (
    "A known size of the file",
    "Keeps a share of the change's size (Frobenius norm), for instance 95 %",
    "Keeps a share of the sum of all strengths (singular values): more of the many weak ones",
    "Keeps directions down to a fraction of the strongest one",
)
SHARES = {"share": 95, "sum": 90}  # percent to begin with


def rank_field(start: int, *, key: str) -> "RankRule":
    """The rule that is chosen.

    Args:
        start: Rank to begin with.
        key: Unique on the page.
    """
    from registry.formats.operations.ranks import RankRule

    way = st.radio("How large", list(WAYS), format_func=WAYS.__getitem__, captions=CAPTIONS, key=f"{key}-way")
    share, ratio, limit = 0.0, 0.0, True
    if way in SHARES:
        start_at = SHARES[way]
        share = st.slider("Share that is kept", 50, 99, start_at, format="%d %%", key=f"{key}-{way}") / 100
    elif way == "ratio":
        ratio = float(st.slider("Down to 1 / this of the strongest", 2, 100, 10, key=f"{key}-ratio"))
    if way != "fixed":
        limit = st.toggle("At most a certain rank", key=f"{key}-limit")
    rank = int(st.number_input("Rank", 1, 4096, start, key=f"{key}-rank")) if limit else 0
    shares = {"sv_fro": share if way == "share" else 0.0, "sv_cumulative": share if way == "sum" else 0.0}
    return RankRule(rank, sv_ratio=ratio, **shares)
