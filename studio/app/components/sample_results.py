"""Pictures being made and pictures made."""

import math
from typing import Any

import streamlit as st

from registry.errors import Damaged
from registry.files import read_json
from registry.records import Base, Job, JobKind, JobState, Sample
from studio.app import shell
from studio.app.components import sample_form
from studio.app.components.cards import sample_cards
from studio.app.components.gallery import Card, gallery
from studio.app.routes import picture_url
from studio.app.words import duration, md, plural

PER_PAGE = 12  # samples, each of one or more pictures
LIVE = (JobState.QUEUED, JobState.LEASED)


def results() -> None:
    """What is being made, then what was made, newest first."""
    catalog = shell.workspace().catalog
    jobs = catalog.list(Job, kind=JobKind.SAMPLE, state=LIVE, order="created_at")
    if jobs:
        making(tuple(job.id for job in jobs))
    _last_failure()
    total = catalog.count(Sample)
    if not total:
        if not jobs:
            shell.empty(
                "samples", "Your pictures appear here", "Write what to draw, then press Make pictures."
            )
        return
    pages = math.ceil(total / PER_PAGE)
    place = min(st.session_state.get("samples-page", 1), pages)
    bases = {base.id: base for base in catalog.list(Base)}
    samples = catalog.list(Sample, limit=PER_PAGE, offset=(place - 1) * PER_PAGE)
    cards = [card for sample in samples for card in sample_cards(sample, bases)]
    if cards:
        st.caption("Click a picture to have all its settings back")
        if opened := gallery(cards, key="samples-grid", least=150):
            sample, _, index = opened.partition("/")
            sample_form.put_back(catalog.get(Sample, sample).request, int(index))
            st.rerun()
    if pages > 1:
        with st.container(horizontal_alignment="center"):
            st.pagination(pages, default=place, key="samples-page")


@st.fragment(run_every=0.8)
def making(known: tuple[str, ...]) -> None:
    """Live preview, progress and Stop for each sample in the queue; the page is shown anew when one ends."""
    catalog = shell.workspace().catalog
    jobs = catalog.list(Job, kind=JobKind.SAMPLE, state=LIVE, order="created_at")
    if {job.id for job in jobs} != set(known):
        st.rerun()
    for job in jobs:
        sample = catalog.find(Sample, job.subject_id)
        if sample is not None:
            _progress(job, sample)


def _progress(job: Job, sample: Sample) -> None:
    news = progress_of(sample)
    step, steps = int(news.get("step", 0)), int(news.get("steps", 0) or sample.request.get("steps", 1))
    done, count = int(news.get("done", 0)), int(news.get("count", 0) or sample.request.get("count", 1))
    fraction = min(1.0, (done + (step / steps if done < count else 0)) / count)
    with st.container(key=f"panel-making-{sample.id}"):
        picture, facts = st.columns([1, 2], vertical_alignment="center")
        with picture:
            live = shell.workspace().home / "samples" / sample.id / "preview.png"
            url = (
                picture_url("sample", sample.id, "live") + f"?t={live.stat().st_mtime_ns}"
                if live.exists()
                else ""
            )
            card = Card(
                id=sample.id, images=(url,) if url else (), placeholder="soon", alt="Picture in progress"
            )
            gallery([card], key=f"live-{sample.id}", opens=False, least=120)
        with facts:
            st.markdown(md(sample.request.get("prompt", "")) or "no prompt")
            st.progress(fraction, text=_line(job, news, done=done, count=count, step=step, steps=steps))
            if st.button("Stop", key=f"stop-{job.id}", icon=":material/stop:", disabled=job.cancel):
                with shell.guarded():
                    shell.workspace().catalog.cancel_job(job.id)
                    st.rerun(scope="fragment")


def _line(job: Job, news: dict[str, Any], *, done: int, count: int, step: int, steps: int) -> str:
    if job.cancel:
        return "Stopping"
    if job.state is JobState.QUEUED:
        return "Waiting for its turn"
    if not step and not done:
        return str(news.get("phase") or "Loading the model")
    left = duration(news.get("seconds_left"))
    return (
        f"Picture {min(done + 1, count)} of {plural(count, 'picture').split()[0]}, step {step} of {steps}"
        + (f", {left} left" if left else "")
    )


def progress_of(sample: Sample) -> dict[str, Any]:
    """What the sampler last said about a sample; {} before its first word."""
    path = shell.workspace().home / "samples" / sample.id / "progress.json"
    try:
        return read_json(path) if path.exists() else {}
    except (Damaged, OSError):  # replaced while it was read
        return {}


def _last_failure() -> None:
    """The newest sample job, when it failed: say why, once, until another is made."""
    for job in shell.workspace().catalog.list(Job, kind=JobKind.SAMPLE, limit=1):
        if job.state is JobState.FAILED and st.session_state.get("seen-failure") != job.id:
            with st.container(horizontal=True, vertical_alignment="center"):
                st.error(md(job.error or "The pictures could not be made."), icon=":material/error:")
                if st.button("Understood", key=f"seen-{job.id}"):
                    st.session_state["seen-failure"] = job.id
                    st.rerun()
