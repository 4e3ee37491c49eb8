"""How an import goes, and what it did: counts, and a line for each file that is not simply in."""

from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from registry.records import Job, JobKind, JobState
from studio.app import shell, state
from studio.app.words import md, plural, size

if TYPE_CHECKING:
    from studio.imports.report import ImportReport

LIVE = (JobState.QUEUED, JobState.LEASED)
SHOWN = 50  # lines of a kind
JOBS = 4  # on one page
NAMES = {"duplicates", "moved"}  # of these the adapter is named, not a reason
PARTS = (
    ("bad", "Refused", "These files were not taken in. They are as they were."),
    ("unidentified", "Not identified", "Taken in, but what they are for is not known."),
    ("duplicates", "Already here", "The same weights as the adapter that is named."),
    ("moved", "Found again", "Missing files of the adapters that are named."),
    ("notes", "Notes", "Taken in; this was noticed."),
)


def show(keys: str) -> None:
    """The imports with these ids (separated by commas), live while they last."""
    if st.button("All adapters", icon=":material/arrow_back:", type="tertiary"):
        shell.stay()
    shell.heading("Adding adapters", "They appear among your adapters at once, and are read one by one.")
    catalog = shell.workspace().catalog
    jobs = [job for key in keys.split(",")[:JOBS] if key and (job := catalog.find(Job, key))]
    jobs = [job for job in jobs if job.kind is JobKind.IMPORT]
    if not jobs:
        st.warning("There is no such import. It may have been tidied away.", icon=":material/link_off:")
    for job in jobs:
        if job.state in LIVE:
            live(job.id)
        else:
            ended(job)
    with st.container(horizontal=True):
        if st.button("Show my adapters", type="primary", key="import-show"):
            shell.stay()
        if st.button("Add more", key="import-more"):
            shell.stay(add="1")


def banner() -> None:
    """On the list: what is being taken in now."""
    for job in shell.workspace().catalog.list(Job, kind=JobKind.IMPORT, state=LIVE, limit=1):
        with st.container(key="panel-importing", horizontal=True, vertical_alignment="center"):
            st.markdown(md(_line(job, _report(job))), width="stretch")
            if st.button("Watch", key="import-watch"):
                shell.stay(imports=job.id)


@st.fragment(run_every=1)
def live(job_id: str) -> None:
    """Progress and a way to stop; the whole page is shown anew when it ends."""
    job = shell.workspace().catalog.get(Job, job_id)
    if job.state not in LIVE:
        st.rerun()
    report = _report(job)
    with st.container(key=f"panel-import-{job.id}"):
        st.progress(_fraction(report), text=md(_line(job, report)))
        _figures(report)
        with st.container(horizontal=True, vertical_alignment="center"):
            if st.button("Stop", key=f"stop-{job.id}", icon=":material/stop:", disabled=job.cancel):
                _stop(job)
            if shell.workspace().holder() is None:
                _nobody(job)


def ended(job: Job) -> None:
    """Counts, and what there is to say about single files."""
    report = _report(job)
    with st.container(key=f"panel-import-{job.id}"):
        if job.state is JobState.FAILED:
            st.error(md(report.error or "The import failed."), icon=":material/error:")
        elif job.state is JobState.CANCELLED:
            st.markdown("**Stopped.** What was taken in stays; the rest was left alone.")
        elif report.taken:
            new = plural(report.listed, "new adapter") if report.listed else "nothing was new"
            st.markdown(f":green[:material/check_circle:] **Done: {new}.**")
        else:
            st.markdown(":orange[:material/warning:] **Nothing was taken in.**")
            if not report.count("bad"):
                st.caption("There was no adapter file (.safetensors).")
        _figures(report)
        if report.unsettled:
            st.caption(f"{plural(report.unsettled, 'file')} still being written: add them again later.")
        for kind, title, text in PARTS:
            _lines(report, kind, title, text)


def _lines(report: "ImportReport", kind: str, title: str, text: str) -> None:
    lines: list[tuple[str, str]] = getattr(report, kind)
    if not lines:
        return
    count = report.count(kind)
    with st.expander(f"{title}: {plural(count, 'file')}", expanded=kind == "bad"):
        st.caption(text)
        for file, line in lines[:SHOWN]:
            said = line if kind in NAMES else sentence(line.removeprefix(file))
            st.markdown(f"{md(place(file))}  \n:small[{md(said)}]")
        if count > SHOWN:
            st.caption(f"and {count - SHOWN:,} more")


def place(file: str) -> str:
    """Where a file is; of one that was dropped, its name."""
    from studio.imports.inbox import INBOX

    path = Path(file)
    return path.name if path.is_relative_to(shell.workspace().home / INBOX) else file


def sentence(line: str) -> str:
    """What is said of a file, to stand alone."""
    line = line.lstrip(": ").removeprefix("unidentified: ")
    return line[:1].upper() + line[1:]


def _report(job: Job) -> "ImportReport":
    from studio.imports.submit import report

    return report(shell.workspace(), job)


def _stop(job: Job) -> None:
    from studio.imports.submit import cancel

    with shell.guarded():
        cancel(shell.workspace(), job)
        st.rerun(scope="fragment")


def _nobody(job: Job) -> None:
    """Without a worker nothing goes on: say so, and offer to start one."""
    st.markdown(":orange[Nothing is working on it.]", width="content")
    if st.button("Start the worker", key=f"work-{job.id}", icon=":material/play_arrow:"):
        with shell.guarded():
            state.wake_worker()


def _figures(report: "ImportReport") -> None:
    figures = (
        ("Taken in", report.listed),
        ("Known already", report.known),
        ("Already here", report.count("duplicates")),
        ("Found again", report.count("moved")),
        ("Refused", report.count("bad")),
        ("Not identified", report.count("unidentified")),
    )
    with st.grid("auto", min_column_width=110, gap="small"):
        for label, value in figures:
            st.metric(label, f"{value:,}")


def _fraction(report: "ImportReport") -> float:
    """Listing is quick and its end unknown; reading is most of the time."""
    if report.phase == "hashing" and report.bytes_total:
        return min(1.0, 0.1 + 0.9 * report.bytes_done / report.bytes_total)
    return {"waiting": 0.0, "fetching": 0.02, "listing": 0.05, "done": 1.0}.get(report.phase, 0.1)


def _line(job: Job, report: "ImportReport") -> str:
    """What is happening, in words."""
    if job.cancel:
        return "Stopping"
    if job.state is JobState.QUEUED:
        return "Adding adapters: waiting for its turn"
    files = plural(report.files, "file")
    lines = {
        "fetching": "Downloading",
        "listing": f"Looking at files: {files} found, {report.listed:,} new",
        "hashing": f"Reading files: {report.hashed:,} done, {size(report.bytes_done)} of"
        f" {size(report.bytes_total)}",
        "done": f"{files} read",
    }
    return lines.get(report.phase, "Getting ready")
