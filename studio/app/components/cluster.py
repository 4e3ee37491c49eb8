"""A Ray cluster: what is set about it, whether it answers, and whether a run goes there."""

import streamlit as st

from studio.app import shell
from studio.app.beside import beside
from studio.app.words import md
from studio.settings import Settings

PLACE_WORDS = {"local": "This machine", "ray": "The cluster"}
LOCAL, RAY = PLACE_WORDS


def section() -> None:
    """On the Settings page: whether there is one, and more when it is opened."""
    st.header("Cluster", anchor=False)
    settings = Settings.load(shell.workspace().home)
    st.markdown(
        f"Runs may train on {md(settings.ray_address)}." if settings.ray_address
        else "Runs train on this machine. They may also train on a Ray cluster."
    )  # fmt: skip
    with st.expander("Set up", icon=":material/lan:", key="cluster", on_change="rerun") as box:
        if box.open:
            form(settings)


def form(settings: Settings) -> None:
    """What is set, to be changed; and the question whether the cluster answers."""
    home = shell.workspace().home
    with st.form("cluster-form", border=False):
        address = st.text_input(
            "Address", settings.ray_address, placeholder="http://HOST:8265", help="Of the cluster's dashboard"
        )
        storage = st.text_input(
            "Folder of this workspace, as the nodes see it",
            settings.ray_storage,
            placeholder=str(home),
            help="Empty: the nodes mount it under the same path",
        )
        token = st.text_input(
            "Token", type="password", placeholder="is set" if settings.ray_token else "is not set",
            help="What the cluster asks for, if it does; kept in studio.toml and never shown",
        )  # fmt: skip
        forget = st.checkbox("Forget the token") if settings.ray_token else False
        saved = st.form_submit_button("Save", icon=":material/save:")
    if saved:
        save(address, storage, token, forget=forget)
    if settings.ray_address:
        answer()


def save(address: str, storage: str, token: str, *, forget: bool) -> None:
    """Write what was filled in; an empty token leaves the one that is there."""
    changes = {"ray_address": address.strip(), "ray_storage": storage.strip()}
    if token or forget:
        changes["ray_token"] = "" if forget else token.strip()
    with shell.guarded():
        home = shell.workspace().home
        now = Settings.load(home)
        Settings.save(home, {name: new for name, new in changes.items() if new != getattr(now, name)})
        st.session_state.pop("beside-cluster", None)
        shell.note("The cluster is saved" if changes["ray_address"] else "Without a cluster from now on")
        st.rerun()


def answer() -> None:
    """Whether it is there; asked when somebody wants to know, because Ray's client takes seconds to load."""
    if st.button("Ask the cluster", icon=":material/network_check:"):
        st.session_state.pop("beside-cluster", None)
        st.session_state["cluster-asked"] = True
    if not st.session_state.get("cluster-asked"):
        return
    home = shell.workspace().home

    def ask() -> str:
        from studio.runs.clusters import Cluster, Jobs

        return Jobs(Cluster.of(home)).version()

    if version := beside("cluster", ask, "Asking the cluster"):
        st.success(f"Ray {md(version)} answers.", icon=":material/check_circle:")


def choose_place() -> str:
    """On the Train page, where a cluster is set."""
    if not Settings.load(shell.workspace().home).ray_address:
        return LOCAL
    chosen = st.segmented_control(
        "Where?",
        list(PLACE_WORDS),
        default=LOCAL,
        format_func=PLACE_WORDS.__getitem__,
        key="train-place",
        required=True,
        persist_state="session",
    )
    if chosen == RAY:
        st.caption("Minutes and memory above are this machine's.")
    return chosen or LOCAL


def place_words(place: str) -> str:
    """Said of a run that is not where all are."""
    return "" if place == LOCAL else "on the cluster"
