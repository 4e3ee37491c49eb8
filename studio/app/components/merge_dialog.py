"""Several adapters as one: which, how strongly, and how conflicts are settled."""

from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st

from registry.errors import BadInput
from registry.records import Adapter
from studio.app import shell
from studio.app.components.make_common import Told, free_name, make_adapter, name_field
from studio.app.components.needed_base import base_field
from studio.app.components.several_field import Part, begin_with, several

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
MOST = 20  # adapters that are chosen at once


@dataclass(frozen=True)
class Wish:
    """How to merge."""

    method: str
    rank: int
    density: float
    seed: int
    base: str


@st.dialog("Merge", width="medium", icon=":material/merge:")
def merge_dialog(adapter: Adapter) -> None:
    """Choose others and weights, make it, open the result."""
    merge_form(adapter)


def merge_chosen(ids: Sequence[str]) -> None:
    """The dialog with adapters that are chosen already.

    Raises:
        BadInput: they cannot be merged.
    """
    first, *others = shell.workspace().catalog.list(Adapter, id=tuple(ids[: MOST + 1]))
    if len(others) >= MOST:
        raise BadInput("the choice", f"has more than {MOST} adapters", "choose fewer")
    odd = next((other for other in others if other.family != first.family), None)
    if odd is not None or not first.family:
        thing = f"{first.name} and {odd.name}" if odd else first.name
        wrong = "are for different base models" if odd else "is not identified"
        raise BadInput(thing, wrong, "choose adapters of one family")
    begin_with(first, [other.id for other in others], key="merge")
    merge_dialog(first)


def merge_form(adapter: Adapter) -> None:
    """What the dialog shows."""
    parts = several(adapter.family, adapter, key="merge")
    method = st.radio(
        "How", list(METHODS), format_func=METHODS.__getitem__, captions=CAPTIONS, key="merge-way"
    )
    rank, density, seed = 0, 0.0, 0
    if method != "concat":
        largest = min(4096, max(1, *(part.adapter.rank for part in parts)))
        rank = int(st.number_input("Rank of the result", 1, 4096, largest, key="merge-rank"))
    if method in DENSITIES:
        usual = DENSITIES[method]
        density = st.slider("Share that is kept", 5, 100, usual, format="%d %%", key=f"merge-{method}") / 100
    if method == "dare":
        seed = int(
            st.number_input("Seed", 0, 2**32 - 1, 0, key="merge-seed", help="Another one, other parts")
        )
    base = base_field([part.adapter for part in parts], key="merge-base")
    together = " + ".join(part.adapter.name[:40] for part in parts[:2])
    proposed = together if len(parts) > 1 else f"{adapter.name} merged"
    name = name_field(free_name(proposed[:90]), key=f"merge-name-{len(parts)}")
    if len(parts) < 2:
        st.caption("Add at least one other adapter.")
    if st.button("Merge", type="primary", key="merge-go", disabled=not name or len(parts) < 2):
        wish = Wish(method, rank, density, seed, base)
        make_adapter(lambda tell: _merged(parts, name, wish, tell))


def _merged(parts: Sequence[Part], name: str, wish: Wish, tell: Told) -> Adapter:
    from registry.formats.operations.merge import MergeSettings
    from registry.formats.operations.ranks import RankRule
    from studio.operations import Use, merge

    uses = [Use(part.adapter.id, part.weight, blocks=part.blocks) for part in parts]
    settings = MergeSettings(wish.method, RankRule(wish.rank), wish.density, wish.seed)
    made = merge(shell.workspace(), uses, name=name, settings=settings, base=wish.base, progress=tell)
    return made.adapter
