"""Settings: is this machine fit, where things are, who may come in."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import streamlit as st

from registry.records import Adapter, Dataset, Run, Sample
from studio.app import shell
from studio.app.components import cluster
from studio.app.words import md
from studio.settings import TOKENS, tokens_present
from studio.workspace import Workspace

if TYPE_CHECKING:
    from studio.doctor import Check

MARKS = {
    "ok": ":green[:material/check_circle:]",
    "warn": ":orange[:material/warning:]",
    "bad": ":red[:material/error:]",
}


def page() -> None:
    """Sections, top to bottom."""
    workspace = shell.workspace()
    shell.heading("Settings", "This machine, this workspace, this server.")
    machine(workspace)
    places(workspace)
    server()
    cluster.section()
    tokens()


def machine(workspace: Workspace) -> None:
    """The doctor's findings; some checks take seconds, so they run beside the page."""
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.header("This machine", anchor=False, width="content")
        again = st.button("Check again", icon=":material/refresh:", key="doctor-again")
    if again or "doctor" not in st.session_state:
        st.session_state["doctor"] = _doctor().submit(examine, workspace)
    if st.session_state["doctor"].done():
        findings(st.session_state["doctor"])
    else:
        wait_for_doctor()


@st.cache_resource
def _doctor() -> ThreadPoolExecutor:
    """One examination at a time."""
    return ThreadPoolExecutor(1, thread_name_prefix="doctor")


def examine(workspace: Workspace) -> "list[Check]":
    """Runs in a thread; imports there, because the first import takes a second."""
    from studio.doctor import machine_report

    return machine_report(workspace)


@st.fragment(run_every=0.5)
def wait_for_doctor() -> None:
    """Shows the page anew when the examination is over."""
    if st.session_state["doctor"].done():
        st.rerun()
    st.caption("Checking: a real calculation on the device takes a few seconds")
    st.skeleton(height=220)


def findings(examination: "Future[list[Check]]") -> None:
    """One line a check, what is wrong first."""
    if (error := examination.exception()) is not None:
        st.error(md(f"The check itself failed: {error}"), icon=":material/error:")
        return
    order = list(MARKS)[::-1]
    for check in sorted(examination.result(), key=lambda check: order.index(check.status)):
        fix = f"  \n:gray[{md(check.fix)}]" if check.fix else ""
        name = f"{check.name[:1].upper()}{check.name[1:]}"
        st.markdown(f"{MARKS[check.status]} **{md(name)}** {md(check.value)}{fix}")


def places(workspace: Workspace) -> None:
    """Where everything lies and how much there is."""
    st.header("Workspace", anchor=False)
    st.code(str(workspace.home), language=None)
    catalog = workspace.catalog
    figures = (
        ("Data sets", f"{catalog.count(Dataset):,}"),
        ("Runs", f"{catalog.count(Run):,}"),
        ("Adapters", f"{catalog.count(Adapter):,}"),
        ("Samples", f"{catalog.count(Sample):,}"),
    )
    with st.grid("auto", min_column_width=120):
        for label, value in figures:
            st.metric(label, value)
    if catalog.read_only:
        st.warning(f"The catalog is read-only: {md(catalog.reason)}", icon=":material/lock:")
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button("Check the catalog", icon=":material/fact_check:"):
            found = catalog.check()
            (st.success if found == "ok" else st.error)(
                "Every page and reference is sound." if found == "ok" else md(found)
            )


def server() -> None:
    """Who can reach it."""
    st.header("Server", anchor=False)
    url = st.context.url or ""
    address = st.get_option("server.address") or "127.0.0.1"
    if address.startswith("127.") or address in {"localhost", "::1"}:
        st.markdown("Only this machine can open these pages.")
    else:
        st.markdown(f"Listens on {md(address)}; a password is asked.")
        st.link_button("Sign out", "/logout", icon=":material/logout:")
    if url:
        st.caption(md(url))
    st.caption("Light or dark follows your system; the menu at the top right of the page changes it.")


def tokens() -> None:
    """Present or not; never shown."""
    st.header("Keys for other services", anchor=False)
    for name, there in tokens_present().items():
        purpose = f"for {TOKENS[name]}"
        present = "is set" if there else "is not set"
        mark = ":green[:material/check_circle:]" if there else ":gray[:material/radio_button_unchecked:]"
        st.markdown(f"{mark} `{name}` {present} :gray[· {md(purpose)}]")
    st.caption("They are read from the environment of the server and never stored or shown.")


if __name__ == "__main__":
    page()
