"""Adapters put into the weights of a base: a new base that needs no adapter any more."""

from collections.abc import Sequence
from pathlib import Path

import streamlit as st

from registry.errors import BadInput, StudioError
from registry.files import check_name, file_stem
from registry.records import Adapter, Base
from studio.app import shell
from studio.app.components.export_dialog import DTYPES
from studio.app.components.make_common import with_progress
from studio.app.components.several_field import Part, several
from studio.app.words import md, plural, size


@st.dialog("Put adapters into a base", width="medium", icon=":material/layers:")
def bake_dialog(adapter: Adapter | None = None, base: Base | None = None) -> None:
    """Choose, write, see where the new base is."""
    bake_form(adapter, base)


def bake_form(adapter: Adapter | None = None, base: Base | None = None) -> None:
    """What the dialog shows; one of the two is given."""
    st.caption(
        "A new base with the adapters in its weights (baked, or fused); base and adapters stay as they are."
    )
    start = base or _base(adapter)
    if start is None:
        st.warning("There is no base of its family here: add one on the page Bases.")
        return
    parts = several(start.family, adapter, key="bake")
    names = " + ".join(part.adapter.name[:30] for part in parts[:2])
    proposed = _free(f"{start.name[:30]} + {names}"[:90]) if parts else ""
    name = _name(proposed, key=f"bake-name-{start.id}-{len(parts)}") if parts else ""
    with st.expander("More"):
        dtype = st.selectbox("Precision", list(DTYPES), format_func=DTYPES.__getitem__, key="bake-dtype")
        single = start.kind == "file" or st.toggle(
            "One file instead of a folder", key="bake-file", disabled=not _has_single_file(start)
        )
        listed = st.toggle("Add it to the bases", value=True, key="bake-add")
    if not parts:
        st.caption("Add at least one adapter.")
    if st.button("Put them in", type="primary", key="bake-go", disabled=not (parts and name)):
        out = _place(name, ".safetensors" if single else "")
        _write(start, parts, out, dtype or "", name if listed else "")


def _base(adapter: Adapter | None) -> Base | None:
    """The base that is chosen: at first the one that the adapter was trained on."""
    family = adapter.family if adapter else ""
    bases = {base.id: base for base in shell.workspace().catalog.list(Base, family=family, part="")}
    if not bases or adapter is None:
        return None
    ids = list(bases)
    chosen = st.selectbox(
        "Into which base",
        ids,
        index=ids.index(adapter.base_id) if adapter.base_id in bases else 0,
        format_func=lambda id: bases[id].name,
        key="bake-base",
    )
    return bases[chosen or ids[0]]


def _has_single_file(base: Base) -> bool:
    from registry.formats.single_file import PREFIXES

    return base.family in PREFIXES


def _name(proposed: str, *, key: str) -> str:
    """Name of the new base; "" while it cannot be used, which is said below the field."""
    name = (st.text_input("Name of the new base", proposed, max_chars=100, key=key) or "").strip()
    try:
        check_name(name)
        if shell.workspace().catalog.find(Base, name) is not None:
            raise BadInput(f"base {name!r}", "exists already", "choose another name")
    except StudioError as error:
        shell.complain(error)
        return ""
    return name


def _free(proposed: str) -> str:
    from studio.adapters import numbered

    catalog = shell.workspace().catalog
    return next(name for name in numbered(proposed) if catalog.find(Base, name) is None)


def _place(name: str, ending: str) -> Path:
    """A place in exports/ where nothing is."""
    from studio.adapters import numbered

    folder = shell.workspace().home / "exports"
    places = (folder / f"{file_stem(text)}{ending}" for text in numbered(name))
    return next(place for place in places if not place.exists())


def _write(base: Base, parts: Sequence[Part], out: Path, dtype: str, add: str) -> None:
    from studio.operations import Use, bake

    uses = [Use(part.adapter.id, part.weight, blocks=part.blocks) for part in parts]
    baked = with_progress(
        lambda tell: bake(shell.workspace(), base.id, uses, out, dtype=dtype, add=add, progress=tell),
        in_bytes=True,
    )
    if baked is None:
        return
    report = baked.report
    done = f"{plural(report.modules, 'layer')} changed, {size(report.bytes)} written"
    st.success(done, icon=":material/check:")
    for line in report.notes:
        st.caption(md(line))
    st.code(report.path, language=None, wrap_lines=True)
    if baked.base is not None:
        shell.link(
            "bases", f"See {md(baked.base.name)} among the bases", icon=":material/arrow_forward:",
            base=baked.base.id,
        )  # fmt: skip
