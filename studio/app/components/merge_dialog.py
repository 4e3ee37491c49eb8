"""Several adapters as one: which, how strongly, and how conflicts are settled."""

from dataclasses import dataclass

import streamlit as st

from registry.records import Adapter
from studio.app import shell
from studio.app.components.make_common import Told, free_name, name_field, with_progress
from studio.app.components.needed_base import base_field
from studio.app.components.pick_adapter import pick_adapter
from studio.app.words import md

METHODS = {
    "concat": "Exactly, all of each",
    "svd": "Together, in a smaller file",
    "ties": "Settle what contradicts (TIES)",
    "dare": "Thin out at random (DARE)",
}
CAPTIONS = (
    "What all do together; the file is as large as all of them",
    "The closest that fits a rank",
    "Of each the strongest part; where they disagree the stronger side counts",
    "Of each a random part, made stronger; for adapters that get in each other's way",
)
DENSITIES = {"ties": 20, "dare": 50}  # percent that is kept, as usual


@dataclass(frozen=True)
class Wish:
    """How to merge."""

    method: str
    rank: int
    density: float
    base: str


@st.dialog("Merge", width="medium", icon=":material/merge:")
def merge_dialog(adapter: Adapter) -> None:
    """Choose others and weights, make it, open the result."""
    merge_form(adapter)


def merge_form(adapter: Adapter) -> None:
    """What the dialog shows."""
    chosen = _chosen(adapter)
    weights = {part.id: _weight(part, adapter) for part in chosen}
    key = f"merge-{adapter.id}-{len(chosen)}"
    other = pick_adapter("Another adapter", adapter.family, without=set(weights), key=key)
    if other is not None:
        add = _ids(adapter).append
        st.button(f"Add {md(other.name)}", key="merge-add", on_click=add, args=(other.id,))
    method = st.radio(
        "How", list(METHODS), format_func=METHODS.__getitem__, captions=CAPTIONS, key="merge-way"
    )
    rank, density = 0, 0.0
    if method != "concat":
        largest = min(4096, max(1, *(part.rank for part in chosen)))
        rank = int(st.number_input("Rank of the result", 1, 4096, largest, key="merge-rank"))
    if method in DENSITIES:
        usual = DENSITIES[method]
        density = st.slider("Share that is kept", 5, 100, usual, format="%d %%", key=f"merge-{method}") / 100
    base = base_field(chosen, key="merge-base")
    together = " + ".join(part.name[:40] for part in chosen[:2])
    proposed = together if len(chosen) > 1 else f"{adapter.name} merged"
    name = name_field(free_name(proposed[:90]), key=f"merge-name-{len(chosen)}")
    if len(chosen) < 2:
        st.caption("Add at least one other adapter.")
    if st.button("Merge", type="primary", key="merge-go", disabled=not name or len(chosen) < 2):
        wish = Wish(method, rank, density, base)
        with_progress(lambda tell: _merged(weights, name, wish, tell))


def _ids(adapter: Adapter) -> list[str]:
    return st.session_state.setdefault(f"merge-others-{adapter.id}", [])


def _chosen(adapter: Adapter) -> list[Adapter]:
    """The adapter and those that were added, as long as they are there."""
    catalog = shell.workspace().catalog
    others = [catalog.find(Adapter, id) for id in _ids(adapter)]
    return [adapter, *(other for other in others if other and other.trashed_at is None)]


def _weight(part: Adapter, first: Adapter) -> float:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        weight = st.slider(
            md(part.name), -1.0, 2.0, min(2.0, max(-1.0, part.recommended_weight)), 0.05,
            key=f"merge-weight-{part.id}", help="How strongly it goes in (weight)",
        )  # fmt: skip
        if part.id != first.id:
            drop = _ids(first).remove
            key = f"merge-drop-{part.id}"
            st.button("Leave out", key=key, type="tertiary", on_click=drop, args=(part.id,))
    return weight


def _merged(weights: dict[str, float], name: str, wish: Wish, tell: Told) -> Adapter:
    from registry.formats.operations.merge import MergeSettings
    from registry.formats.operations.ranks import RankRule
    from studio.operations import Use, merge

    uses = [Use(id, weight) for id, weight in weights.items()]
    settings = MergeSettings(wish.method, RankRule(wish.rank), wish.density)
    made = merge(shell.workspace(), uses, name=name, settings=settings, base=wish.base, progress=tell)
    return made.adapter
