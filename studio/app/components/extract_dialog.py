"""An adapter out of a fine-tuned model: what it has that its base has not."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import streamlit as st

from registry.records import Adapter, Base
from studio.app import shell
from studio.app.components.export_dialog import DTYPES
from studio.app.components.make_common import Told, free_name, make_adapter, name_field
from studio.app.components.rank_field import rank_field
from trainers.families import FAMILIES

if TYPE_CHECKING:
    from registry.formats.operations.ranks import RankRule

PRECISIONS = {name: DTYPES[name] for name in ("fp16", "bf16", "fp32")}
START_RANK = 32
STEM = 80  # characters of a proposed name


@dataclass(frozen=True)
class Wish:
    """What to take out."""

    base: str
    tuned: str
    components: tuple[str, ...]
    convolutions: bool
    dtype: str


@st.dialog("Take an adapter out of a model", width="medium", icon=":material/colorize:")
def extract_dialog(base: Base | None, *, elsewhere: bool = False) -> None:
    """Choose the two models, make it, open the result."""
    extract_form(base, elsewhere=elsewhere)


def extract_form(base: Base | None, *, elsewhere: bool = False) -> None:
    """What the dialog shows.

    Args:
        base: The base that was fine-tuned, when it is known.
        elsewhere: The dialog is on another page than the adapters'.
    """
    from studio.bases import list_bases

    st.caption(
        "A fine-tuned model differs from the base it began as. The difference, made small, is an adapter."
    )
    bases = {known.id: known for known in list_bases(shell.workspace())}
    ids = list(bases)
    chosen = st.selectbox(
        "The base it was trained from",
        ids,
        index=ids.index(base.id) if base and base.id in bases else 0,
        format_func=lambda id: bases[id].name,
        key="extract-base",
    )
    start = bases[chosen or ids[0]]
    tuned = _tuned(start, bases)
    stem = bases[tuned].name if tuned in bases else _stem(tuned)
    proposed = free_name(f"{stem[:STEM]} extracted" if stem else "extracted")
    name = name_field(proposed, key=f"extract-name-{stem}")
    rule = rank_field(START_RANK, key="extract")
    with st.expander("More"):
        text = st.toggle("The text side, too", value=True, key="extract-text", help="Text encoders")
        convolutions = st.toggle(
            "Convolutions, too", value=True, key="extract-conv", help="Those of 3 x 3; more exact, larger"
        )
        dtype = st.selectbox(
            "Precision", list(PRECISIONS), format_func=PRECISIONS.__getitem__, key="extract-dtype"
        )
    if not tuned:
        st.caption("Say which model was fine-tuned.")
    if st.button("Take it out", type="primary", key="extract-go", disabled=not (name and tuned)):
        components = () if text else (FAMILIES[start.family].denoiser,)
        wish = Wish(start.id, tuned, components, convolutions, dtype or "fp16")
        make_adapter(lambda tell: _extracted(wish, rule, name, tell), elsewhere=elsewhere)


def _tuned(start: Base, bases: dict[str, Base]) -> str:
    """Id of a base, or a path; "" while neither is given."""
    others = [id for id, base in bases.items() if id != start.id and base.family == start.family]
    picked = None
    if others:
        picked = st.selectbox(
            "The fine-tuned model",
            others,
            index=None,
            format_func=lambda id: bases[id].name,
            key=f"extract-tuned-{start.id}",
            placeholder="choose a base",
        )
    label = "Or where it is" if others else "The fine-tuned model"
    place = st.text_input(
        label,
        key="extract-place",
        placeholder="/models/fine-tuned.safetensors",
        help="A diffusers folder or a .safetensors checkpoint of the same family",
        disabled=picked is not None,
    )
    return picked or (place or "").strip()


def _stem(place: str) -> str:
    return place.replace("\\", "/").rstrip("/").rpartition("/")[2].removesuffix(".safetensors")


def _extracted(wish: Wish, rule: "RankRule", name: str, tell: Told) -> Adapter:
    from studio.operations import extract

    made = extract(
        shell.workspace(), wish.base, wish.tuned, rule, name=name, components=wish.components,
        convolutions=wish.convolutions, dtype=wish.dtype, progress=tell,
    )  # fmt: skip
    return made.adapter
