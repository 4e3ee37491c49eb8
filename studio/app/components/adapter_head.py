"""What an adapter is, at a glance: what it works with, how it is called up, what a person thinks of it."""

from typing import Any

import streamlit as st

from registry.errors import StudioError
from registry.files import check_name
from registry.records import Adapter
from studio.app import shell
from studio.app.components.cards import family_label, method_label, ranks
from studio.app.components.xray_chart import PART_WORDS
from studio.app.words import md, printable
from trainers.families import FAMILIES

WORDS = 12  # trigger words and tags that are shown
CONFIDENCE = {"high": "certain", "medium": "likely", "none": "not recognised"}
SURE = {
    "run": "Certain: it was trained here",
    "merge": "Certain: what it was made of is for them",
    "resize": "Certain: what it was made of is for them",
    "extract": "Certain: it was taken from one",
}
MADE = {"merge": "Merged", "resize": "Resized", "extract": "Extracted"}


def head(adapter: Adapter) -> None:
    """Opinion, family, facts, words to write, and the form that changes them."""
    opinion(adapter)
    family(adapter)
    facts(adapter)
    triggers(adapter)
    made(adapter)
    if adapter.note:
        st.text(printable(adapter.note))
    details(adapter)


def opinion(adapter: Adapter) -> None:
    """Favourite, stars and tags; saved as they are changed."""
    with st.container(horizontal=True, vertical_alignment="center"):
        label = "A favourite" if adapter.favourite else "Make it a favourite"
        icon = ":material/heart_check:" if adapter.favourite else ":material/favorite:"
        if st.button(label, key="favourite", icon=icon, type="tertiary"):
            change(adapter, favourite=not adapter.favourite)
        stars = st.feedback(
            "stars", key=f"stars-{adapter.id}", default=adapter.rating - 1 if adapter.rating else None
        )
        if stars is not None and stars + 1 != adapter.rating:
            change(adapter, rating=stars + 1)
        for tag in adapter.tags[:WORDS]:
            st.badge(md(tag), color="gray")


def facts(adapter: Adapter) -> None:
    """What it is for and how large it is."""
    with st.grid("auto", min_column_width=190, gap="small"):
        with st.container():
            shell.fact("Strength to start with", f"{adapter.recommended_weight:g}", term="weight")
        with st.container():
            method = method_label(adapter.method or "lora")
            shell.fact("Capacity", ranks(adapter) or "none", term=f"{method} rank, alpha {adapter.alpha:g}")
        with st.container():
            words = [PART_WORDS.get(target, target) for target in adapter.targets]
            shell.fact("Changes", ", ".join(words) or "unknown", term="targets")


def family(adapter: Adapter) -> None:
    """Which bases it works with, how that was told, and a way to say otherwise."""
    identified: dict[str, Any] = adapter.metadata.get("identified") or {}
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        with st.container(width="content"):
            shell.fact("Works with", family_label(adapter.family), term="family")
        with st.popover("Not right?" if adapter.family else "Say which", type="tertiary"):
            _family_form(adapter)
    if adapter.family:
        st.caption(_told(adapter, identified))
    else:
        reason = str(identified.get("reason") or "nothing in the file says it").removeprefix("unidentified: ")
        text = f"**It could not be told which bases it works with**: {md(reason)}."
        st.warning(f"{text} Say which, and it can be used.", icon=":material/help:")


def _told(adapter: Adapter, identified: dict[str, Any]) -> str:
    if not identified:
        return SURE.get(adapter.origin, "As the catalog has it")
    how = CONFIDENCE.get(str(identified.get("confidence")), "unknown").capitalize()
    return f"{how}: {md(identified.get('reason') or 'no reason is noted')}"


def _family_form(adapter: Adapter) -> None:
    from studio.adapters import set_family

    names = ["", *FAMILIES]
    chosen = st.selectbox(
        "It works with bases of",
        names,
        index=names.index(adapter.family) if adapter.family in names else 0,
        format_func=lambda name: FAMILIES[name].label if name else "nobody knows",
        key=f"family-{adapter.id}",
    )
    if st.button("Set family", key="family-set", disabled=chosen == adapter.family):
        with shell.guarded():
            set_family(shell.workspace(), adapter.id, chosen)
            shell.note("Saved")
            st.rerun()


def triggers(adapter: Adapter) -> None:
    """Each trigger word as a chip that can be copied."""
    if not adapter.trigger_words:
        return
    st.caption("Write in your prompt (trigger words; point at one to copy it)")
    with st.container(horizontal=True, gap="small", key="chips"):
        for word in adapter.trigger_words[:WORDS]:
            st.code(printable(word), language=None, width="content")
        if len(adapter.trigger_words) > WORDS:
            st.caption(f"and {len(adapter.trigger_words) - WORDS} more", width="content")


def made(adapter: Adapter) -> None:
    """What an operation has done, and how far it is from what went in."""
    told: dict[str, Any] = adapter.metadata.get("made") or {}
    report: dict[str, Any] = told.get("report") or {}
    if not report:
        return
    how = MADE.get(str(told.get("operation")), "Made")
    error = float(report.get("total_error") or 0)
    worst = float(report.get("worst_error") or 0)
    off = f"off by {error:.1%} of the change, at worst {worst:.1%}" if error else "exactly"
    st.caption(f"{how}: {off}")
    for line in report.get("notes") or ():
        st.caption(md(line))


def details(adapter: Adapter) -> None:
    """Name, words, tags, weight and note, in one form."""
    with (
        st.expander("Name, tags and note", icon=":material/edit:"),
        st.form(f"opinion-{adapter.id}", border=False),
    ):
        name = st.text_input("Name", adapter.name, max_chars=100)
        below = st.container()
        words = st.text_input("Trigger words", ", ".join(adapter.trigger_words), help="Separated by commas")
        tags = st.text_input("Tags", ", ".join(adapter.tags), help="Separated by commas")
        start = min(4.0, max(-4.0, adapter.recommended_weight))
        weight = st.number_input("Strength to start with", -4.0, 4.0, start, 0.05)
        text = st.text_area("Note", adapter.note, placeholder="What works, what does not")
        if st.form_submit_button("Save", type="primary"):
            try:
                name = check_name((name or "").strip(), "name")
            except StudioError as error:
                with below:
                    shell.complain(error)
                return
            change(
                adapter,
                name=name,
                trigger_words=parts(words),
                tags=parts(tags),
                recommended_weight=float(weight),
                note=(text or "").strip(),
            )


def parts(text: str | None) -> tuple[str, ...]:
    """ "a, b,, a" -> ("a", "b")."""
    return tuple(dict.fromkeys(word.strip() for word in (text or "").split(",") if word.strip()))


def change(adapter: Adapter, **changes: object) -> None:
    """Save and show the page anew."""
    try:
        shell.workspace().catalog.update(Adapter, adapter.id, **changes)
    except StudioError as error:
        shell.complain(error)
        return
    shell.note("Saved")
    st.rerun()
