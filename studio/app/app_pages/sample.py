"""Sample: a base, any number of adapters, a prompt; pictures, or what else the base makes."""

from pathlib import Path
from tempfile import TemporaryDirectory

import streamlit as st

from studio.app import shell, state
from studio.app.components import notice, sample_form
from studio.app.components.picture_settings import picture_settings
from studio.app.components.sample_results import results


def page() -> None:
    """Form on the left, pictures on the right; below each other on a phone."""
    from studio.bases import list_bases, list_media

    sample_form.apply_pending()
    shell.heading("Sample", "Make pictures with a base and your adapters.")
    notice.show()
    bases = [*list_bases(shell.workspace()), *list_media(shell.workspace())]
    if not bases:
        shell.empty(
            "bases", "No base model yet", "Pictures need a base.", [("Add a base", lambda: shell.go("bases"))]
        )
        return
    left, right = st.columns([2, 3], gap="medium")
    with left:
        picture_settings()
        values = sample_form.form(bases)
    if values is not None:
        from studio.sampling.submit import submit

        with left, shell.guarded():
            with TemporaryDirectory() as folder:  # submit keeps its own copies
                submit(shell.workspace(), sample_form.request_of(values, Path(folder)))
            state.wake_worker()
            st.rerun()
    with right:
        results()


if __name__ == "__main__":
    page()
