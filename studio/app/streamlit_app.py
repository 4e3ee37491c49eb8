"""Navigation only: each page is a file in app_pages/."""

import streamlit as st

from registry.errors import StudioError
from studio.app import shell, theme

st.set_page_config(page_title="LoRA Studio", page_icon=str(theme.HERE / "static" / "mark.svg"), layout="wide")
st.html(theme.stylesheet(dark=st.context.theme.type == "dark"))
st.logo(str(theme.HERE / "static" / "mark.svg"), size="large")

page = st.navigation(
    {
        "": [st.Page("app_pages/home.py", title="Home", icon=":material/home:", default=True)],
        "Make": [
            st.Page("app_pages/datasets.py", title="Data sets", icon=":material/photo_library:"),
            st.Page("app_pages/train.py", title="Train", icon=":material/model_training:"),
            st.Page("app_pages/runs.py", title="Runs", icon=":material/timeline:"),
        ],
        "Use": [
            st.Page("app_pages/adapters.py", title="Adapters", icon=":material/style:"),
            st.Page("app_pages/sample.py", title="Sample", icon=":material/brush:"),
            st.Page("app_pages/compare.py", title="Compare", icon=":material/compare:"),
        ],
        "Studio": [
            st.Page("app_pages/bases.py", title="Bases", icon=":material/deployed_code:"),
            st.Page("app_pages/settings.py", title="Settings", icon=":material/settings:"),
        ],
    },
    expanded=True,
)
with st.sidebar:
    shell.sidebar_status()
try:
    page.run()
except StudioError as error:
    shell.complain(error)
