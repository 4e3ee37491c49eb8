"""Settings: is this machine fit, where things are, who may come in."""

import shutil

import streamlit as st

from registry.records import Adapter, Dataset, Run, Sample
from studio.app import shell
from studio.app.words import md, size
from studio.settings import tokens_present
from studio.workspace import Workspace

TOKENS = {
    "HF_TOKEN": "Hugging Face, for gated models",
    "WANDB_API_KEY": "Weights & Biases, for curves elsewhere",
}
MARKS = {
    "ok": (":green[:material/check_circle:]", "fine"),
    "warn": (":orange[:material/warning:]", "look at this"),
    "bad": (":red[:material/error:]", "must be fixed"),
}


def page() -> None:
    """Sections, top to bottom."""
    workspace = shell.workspace()
    shell.heading("Settings", "This machine, this workspace, this server.")
    machine(workspace)
    places(workspace)
    server()
    tokens()


def machine(workspace: Workspace) -> None:
    """The doctor's findings, asked for once a session and on request: some checks take a second."""
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.header("This machine", anchor=False, width="content")
        again = st.button("Check again", icon=":material/refresh:", key="doctor-again")
    if again or "doctor" not in st.session_state:
        from studio.doctor import machine_report

        with st.spinner("Checking"):
            st.session_state["doctor"] = machine_report(workspace)
    for check in st.session_state["doctor"]:
        mark, word = MARKS.get(check.status, ("", check.status))
        with st.container(horizontal=True, gap="small"):
            st.markdown(mark, width="content", help=word)
            fix = f"  \n:gray[{md(check.fix)}]" if check.fix else ""
            st.markdown(f"**{md(check.name)}** {md(check.value)}{fix}", width="stretch")


def places(workspace: Workspace) -> None:
    """Where everything lies and how much there is."""
    st.header("Workspace", anchor=False)
    st.code(str(workspace.home), language=None)
    usage = shutil.disk_usage(workspace.home)
    catalog = workspace.catalog
    figures = (
        ("Data sets", f"{catalog.count(Dataset):,}"),
        ("Runs", f"{catalog.count(Run):,}"),
        ("Adapters", f"{catalog.count(Adapter):,}"),
        ("Samples", f"{catalog.count(Sample):,}"),
        ("Free on this disk", size(usage.free)),
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
        purpose = TOKENS.get(name, "")
        present = "is set" if there else "is not set"
        mark = ":green[:material/check_circle:]" if there else ":gray[:material/radio_button_unchecked:]"
        st.markdown(f"{mark} `{name}` {present} :gray[· {md(purpose)}]")
    st.caption("They are read from the environment of the server and never stored or shown.")


if __name__ == "__main__":
    page()
