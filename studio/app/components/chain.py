"""The way from pictures to an adapter and on, as links; licence and consent, which go along with it."""

from typing import Any

import streamlit as st

from registry.records import Adapter, Dataset
from studio.app import shell
from studio.app.components.gallery import Card, gallery
from studio.app.routes import picture_url
from studio.app.words import ORIGIN_WORDS, ago, md, plural

PICTURES = 8  # shown of a run
DEPTH = 4  # generations of parents that are told in full
CHILDREN = 12  # links to what was made from it


def chain(adapter: Adapter) -> None:
    """Everything before the adapter, what was made from it, and who may do what with it."""
    from studio.provenance import origin_of

    story = origin_of(shell.workspace(), adapter, most_pictures=PICTURES)
    st.subheader("Where it comes from", anchor=False)
    _before(story, DEPTH)
    if adapter.origin != "run":
        source = f", from {md(adapter.source)}" if adapter.source else ""
        st.caption(f"{ORIGIN_WORDS[adapter.origin].capitalize()} {ago(adapter.created_at)}{source}")
    else:
        on = f" on {md(story['base']['name'])}" if story["base"] else ""
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.caption(f"Trained {ago(adapter.created_at)}{on}", width="content")
            if story["run"]:
                shell.link("runs", "Run again, or compare runs", icon=":material/replay:", run=adapter.run_id)
    _after(adapter)
    notes(adapter)


def notes(record: Adapter | Dataset) -> None:
    """Licence and consent: what is noted, and the form that changes it."""
    for label, text in (("Licence", record.licence), ("Consent", record.consent)):
        if text:
            st.caption(f"{label}: {md(text)}")
    with (
        st.expander("Licence and consent", icon=":material/gavel:"),
        st.form(f"notes-{record.id}", border=False),
    ):
        licence = st.text_input(
            "Licence", record.licence, max_chars=500, placeholder="own pictures, CC BY 4.0"
        )
        consent = st.text_input(
            "Consent", record.consent, max_chars=500, placeholder="who is shown, and whether they agreed"
        )
        st.caption(
            "What is trained or merged from now on inherits both. Exported files carry the licence; "
            "published ones leave the consent out."
        )
        if st.form_submit_button("Save notes"):
            _save(record, licence or "", consent or "")


def _save(record: Adapter | Dataset, licence: str, consent: str) -> None:
    from studio.notes import set_note

    with shell.guarded():
        set_note(shell.workspace(), record, "licence", licence)
        set_note(shell.workspace(), record, "consent", consent)
        shell.note("Saved")
        st.rerun()


def _before(story: dict[str, Any], depth: int) -> None:
    """Run and parents of one adapter, then theirs."""
    if story.get("run"):
        _run(story["run"], story.get("step", 0))
    if (story.get("base") or {}).get("run"):
        st.caption(f"Its base {md(story['base']['name'])} was trained here, too:")
        _run(story["base"]["run"])
    if baked := (story.get("base") or {}).get("parents"):
        st.caption(f"Its base {md(story['base']['name'])} was baked from:")
        for parent in baked:
            _parent(parent)
    for parent in story.get("parents", ()):
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.markdown(f":gray[{md(story['made']['operation'] or story['origin'])} of]", width="content")
            _parent(parent)
        if depth and not parent.get("repeated"):
            _before(parent, depth - 1)


def _parent(parent: dict[str, Any]) -> None:
    name = md(parent["name"] or parent["id"])
    weight = f" at {parent['weight']:g}" if "weight" in parent else ""
    if parent.get("gone"):
        st.markdown(f"{name}{weight} :gray[since removed]", width="content")
        return
    page, parameter = (
        ("bases", "base") if "origin" not in parent and "family" in parent else ("adapters", "adapter")
    )
    shell.link(page, f"{name}{weight}", icon=":material/extension:", **{parameter: parent["id"]})


def _run(run: dict[str, Any], step: int = 0) -> None:
    """pictures -> data set -> run -> step, each a link where there is something to look at."""
    if run.get("repeated"):
        shell.link("runs", md(run["name"]), icon=":material/timeline:", run=run["id"])
        return
    dataset = run["dataset"]
    cards = [
        Card(
            id=f"{run['id']}-{place}",
            images=(picture_url("thumb", picture["blob"]),),
            zoom=picture_url("blob", picture["blob"]),
            zoom_text=picture["caption"],
            alt=picture["name"],
        )
        for place, picture in enumerate(run["pictures"])
        if picture["blob"]
    ]
    gallery(cards, key=f"chain-{run['id']}", opens=False, least=56, framed=False)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown(plural(run["picture_count"], "picture"), width="content")
        _arrow()
        if dataset["state"] == "gone":
            st.markdown(":gray[data set since removed]", width="content")
        else:
            st.markdown(":gray[data set]", width="content")
            shell.link(
                "datasets", md(dataset["name"]), icon=":material/photo_library:", dataset=dataset["id"]
            )
        _arrow()
        st.markdown(":gray[run]", width="content")
        shell.link("runs", md(run["name"]), icon=":material/timeline:", run=run["id"])
        if step:
            _arrow()
            st.markdown(f"step {step:,}", width="content")
    if dataset["state"] == "changed":
        st.caption("The pictures or captions were changed after this run; the run keeps its own list.")
    if run["branched_from"]:
        before = run["branched_from"]
        name = f"{md(before['name'] or before['id'])}, step {before['step']:,}"
        shell.link("runs", f"went on from {name}", icon=":material/call_split:", run=before["id"])


def _arrow() -> None:
    st.markdown(":gray[→]", width="content")


def _after(adapter: Adapter) -> None:
    """Links to what was merged, resized or extracted from it."""
    children = shell.workspace().catalog.lineage.children(adapter.id)
    if not children:
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown(":gray[made from it]", width="content")
        for child in children[:CHILDREN]:
            shell.link("adapters", md(child.name), icon=":material/extension:", adapter=child.id)
        if len(children) > CHILDREN:
            st.markdown(f":gray[and {len(children) - CHILDREN} more]", width="content")
