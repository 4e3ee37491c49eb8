"""Which adapters hold a picture: drop one, or come from a data set, and see the way that it went."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import streamlit as st

from registry.records import Adapter, Base, Image
from studio.app import shell
from studio.app.components.cards import adapter_card, sample_cards
from studio.app.components.gallery import Card, gallery
from studio.app.components.upload import PICTURES
from studio.app.routes import picture_url
from studio.app.words import ORIGIN_WORDS, md, plural

if TYPE_CHECKING:
    from studio.provenance import PictureUses

ASK = "1"  # in the address: no picture yet
LINKS = 12  # data sets, runs and bases that are named
CARDS = 48
SAMPLES = 12
_HASH = re.compile(r"[0-9a-f]{64}")
_SEEN, _NAMES = "uses-seen", "uses-names"


def show(picture: str) -> None:
    """The whole page.

    Args:
        picture: Pixel hash out of the address; anything else asks for a picture.
    """
    if st.button("All adapters", icon=":material/arrow_back:", type="tertiary"):
        shell.stay()
    shell.heading(
        "Which adapters hold this picture?",
        "It is known by its pixels. A copy that was scaled, cropped or saved with loss is another picture.",
    )
    known = bool(_HASH.fullmatch(picture))
    if picture not in ("", ASK) and not known:
        st.warning("The link names no picture.", icon=":material/link_off:")
    if known:
        with shell.guarded():
            _found(picture)
        st.subheader("Another picture", anchor=False)
    given: Any = st.file_uploader(
        "Drop a picture",
        PICTURES,
        key="uses-file",
        help="It is only compared, and not kept. Pictures of a data set have a button for this on its page.",
    )
    if given is not None and st.session_state.get(_SEEN) != given.file_id:
        _look_at(given)


def _look_at(given: Any) -> None:
    """Put the hash of the dropped picture into the address."""
    from studio.datasets.decode import decode

    with shell.guarded():
        pixels = decode(given.getvalue(), given.name).pixel_hash
        st.session_state[_SEEN] = given.file_id
        st.session_state.setdefault(_NAMES, {})[pixels] = given.name
        shell.stay(picture=pixels)


def _found(pixels: str) -> None:
    from studio.provenance import uses_of_pixels

    found = uses_of_pixels(shell.workspace(), pixels)
    with st.container(key="panel-picture"):
        picture, way = st.columns([1, 4], gap="medium", vertical_alignment="center")
        with picture:
            _picture(pixels)
        with way:
            _chain(found)
    if found.adapters:
        count = len(found.adapters)
        st.subheader(f"{plural(count, 'adapter')} {'holds' if count == 1 else 'hold'} it", anchor=False)
        runs = {run.id: run.name for run in found.runs}
        names = {adapter.id: adapter.name for adapter in found.adapters}
        names |= {base.id: base.name for base in found.bases}
        cards = [_card(adapter, runs, names) for adapter in found.adapters[:CARDS]]
        if opened := gallery(cards, key="uses-adapters"):
            shell.stay(adapter=opened)
        if count > CARDS:
            st.caption(f"and {count - CARDS:,} more: studio datasets uses {pixels[:12]}")
    else:
        st.markdown("**No adapter here is known to hold it.**")
    if found.unknown_line:
        st.markdown(f":orange[:material/help:] {md(found.unknown_line)}")
    _samples(found)


def _picture(pixels: str) -> None:
    """The picture where a data set still has it, and its name."""
    known = shell.workspace().catalog.list(Image, pixel_hash=pixels, limit=1)
    name = st.session_state.get(_NAMES, {}).get(pixels) or (known[0].name if known else "")
    if known:
        card = Card(
            id=pixels,
            images=(picture_url("thumb", known[0].blob),),
            zoom=picture_url("blob", known[0].blob),
            zoom_text=known[0].caption,
            alt=name,
        )
        gallery([card], key="uses-picture", opens=False, least=120, framed=False)
    if name:
        st.markdown(f"**{md(name)}**")


def _chain(found: "PictureUses") -> None:
    """Data sets, runs and bases, in the order in which the picture came to them."""
    _links("In data sets", "datasets", "dataset", ":material/photo_library:", found.datasets)
    _links("Given to runs", "runs", "run", ":material/timeline:", found.runs)
    _links("Learned by bases", "bases", "base", ":material/layers:", found.bases)
    if not (found.datasets or found.runs):
        st.markdown(":gray[It is in no data set, and no run of this workspace was given it.]")


def _links(words: str, page: str, parameter: str, icon: str, records: Sequence[Any]) -> None:
    if not records:
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown(f":gray[{words}]", width="content")
        for record in records[:LINKS]:
            shell.link(page, md(record.name), icon=icon, **{parameter: record.id})
        if len(records) > LINKS:
            st.markdown(f":gray[and {len(records) - LINKS:,} more]", width="content")


def _card(adapter: Adapter, runs: Mapping[str, str], names: Mapping[str, str]) -> Card:
    """A card that says how the picture came into it."""
    card = adapter_card(adapter)
    parents = [names[key] for key in adapter.parents if key in names]
    trash = ("in the trash",) if adapter.trashed_at is not None else ()
    if adapter.run_id in runs:
        how = f"from run {runs[adapter.run_id]}"
    else:
        how = f"{ORIGIN_WORDS.get(adapter.origin, adapter.origin)} from {_some(parents)}"
    return replace(card, lines=(card.lines[0], how, *trash))


def _some(names: Iterable[str]) -> str:
    return ", ".join(names) or "one of them"


def _samples(found: "PictureUses") -> None:
    if not found.samples:
        return
    bases = {base.id: base for base in shell.workspace().catalog.list(Base)}
    cards = [card for sample in found.samples[:SAMPLES] for card in sample_cards(sample, bases)][:SAMPLES]
    st.subheader("Made with those", anchor=False)
    if opened := gallery(cards, key="uses-samples", least=150):
        shell.go("sample", sample=opened)
