"""Pictures being made and pictures made."""

from dataclasses import replace
from typing import Any

import streamlit as st

from registry.records import Base, Job, JobKind, JobState, Sample
from studio.app import shell
from studio.app.components import sample_form
from studio.app.components.cards import sample_cards
from studio.app.components.gallery import Card, gallery
from studio.app.routes import picture_url
from studio.app.words import md
from studio.sampling.media.kinds import word_of

PER_PAGE = 12  # samples, each of one or more pictures
LIVE = (JobState.QUEUED, JobState.LEASED)


def results() -> None:
    """What is being made, then what was made, newest first."""
    catalog = shell.workspace().catalog
    jobs = catalog.list(Job, kind=JobKind.SAMPLE, state=LIVE, background=False, order="created_at")
    if jobs:
        making(tuple(job.id for job in jobs))
    _last_failure()
    total = catalog.count(Sample, purpose="")  # cells of comparisons are on a page of their own
    if not total:
        if not jobs:
            shell.empty(
                "samples", "Your pictures appear here", "Write what to draw, then press Make pictures."
            )
        return
    place = shell.place(total, PER_PAGE, "samples-page")
    bases = {base.id: base for base in catalog.list(Base)}
    samples = catalog.list(Sample, purpose="", limit=PER_PAGE, offset=(place - 1) * PER_PAGE)
    cards = [card for sample in samples for card in sample_cards(sample, bases)]
    if cards:
        st.caption("Click a picture to have all its settings back")
        pictures = {sample.id for sample in samples if not sample.request.get("kind")}
        cards = [
            replace(card, action="Start from this") if card.id.partition("/")[0] in pictures else card
            for card in cards
        ]
        if opened := gallery(cards, key=sample_form.RESULTS, least=130):
            sample, _, index = opened.partition("/")
            sample_form.put_back(catalog.get(Sample, sample).request, int(index))
            st.rerun()
    shell.pager(total, PER_PAGE, "samples-page")


@st.fragment(run_every=0.8)
def making(known: tuple[str, ...]) -> None:
    """Live preview, progress and Stop for each sample in the queue; the page is shown anew when one ends."""
    catalog = shell.workspace().catalog
    jobs = catalog.list(Job, kind=JobKind.SAMPLE, state=LIVE, background=False, order="created_at")
    if {job.id for job in jobs} != set(known):
        st.rerun()
    for job in jobs:
        sample = catalog.find(Sample, job.subject_id)
        if sample is not None:
            _progress(job, sample)


def _progress(job: Job, sample: Sample) -> None:
    from studio.sampling.submit import cancel, progress, share_done

    news = progress(shell.workspace(), sample)
    count = int(news["pictures"]) or int(sample.request.get("count", 1))
    fraction = share_done(news, count)
    with st.container(key=f"panel-making-{sample.id}"):
        picture, facts = st.columns([1, 2], vertical_alignment="center")
        with picture:
            # The number in the address changes with the picture: the browser must not show an old one.
            url = f"{picture_url('sample', sample.id, 'live')}?t={news['picture']}-{news['step']}"
            card = Card(
                id=sample.id,
                images=(url,) if news["preview"] else (),
                placeholder="soon",
                alt="Picture in progress",
            )
            gallery([card], key=f"live-{sample.id}", opens=False, least=0)
        with facts:
            st.markdown(md(sample.request.get("prompt", "")) or "no prompt")
            what = word_of(str(sample.request.get("kind", "")))
            st.progress(fraction, text=_line(job, news, count, what))
            if st.button("Stop", key=f"stop-{job.id}", icon=":material/stop:", disabled=job.cancel):
                with shell.guarded():
                    cancel(shell.workspace(), sample)
                    st.rerun(scope="fragment")


def _line(job: Job, news: dict[str, Any], count: int, what: str) -> str:
    if job.cancel:
        return "Stopping"
    if job.state is JobState.QUEUED:
        return "Waiting for its turn"
    if not news["step"]:
        return (
            "Getting the model ready" if news["phase"] == "waiting" else md(str(news["phase"]).capitalize())
        )
    if news["phase"] == "decoding":
        return f"{what.capitalize()} {news['picture']} of {count}, nearly done"
    return f"{what.capitalize()} {news['picture']} of {count}, step {news['step']} of {news['steps']}"


def _last_failure() -> None:
    """The newest sample job, when it failed: say why, once, until another is made."""
    for job in shell.workspace().catalog.list(Job, kind=JobKind.SAMPLE, background=False, limit=1):
        if job.state is JobState.FAILED and st.session_state.get("seen-failure") != job.id:
            with st.container(horizontal=True, vertical_alignment="center"):
                st.error(md(job.error or "The pictures could not be made."), icon=":material/error:")
                if st.button("Understood", key=f"seen-{job.id}"):
                    st.session_state["seen-failure"] = job.id
                    st.rerun()
