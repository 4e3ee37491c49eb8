"""How strongly single parts of an adapter act: by half of the network, or block by block."""

import streamlit as st

from registry.errors import StudioError
from registry.records import Adapter
from studio.app import shell

GROUP_WORDS = {
    "IN": "Way in (input blocks)",
    "MID": "Middle (middle block)",
    "OUT": "Way out (output blocks)",
    "JOINT": "Picture and text together (joint blocks)",
    "DOUBLE": "First part (double blocks)",
    "SINGLE": "Second part (single blocks)",
    "TE": "Text side (text encoders)",
}


def block_weights(adapter: Adapter, *, key: str) -> str:
    """Factors as `operations.Use.blocks` takes them; "" = all parts alike.

    Args:
        adapter: Its family says which parts there are.
        key: Unique on the page.
    """
    from registry.formats.operations.blocks import groups_of
    from registry.formats.operations.strength import make_strength

    with st.popover("By part", type="tertiary", icon=":material/equalizer:", key=f"{key}-menu"):
        st.caption("Times the strength above. 0 leaves a part out.")
        entries: list[str] = []
        for group in groups_of(adapter.family):
            factor = st.slider(GROUP_WORDS[group], 0.0, 2.0, 1.0, 0.05, key=f"{key}-{group}")
            entries += [] if factor == 1.0 else [f"{group}={factor:g}"]
        single = st.text_input(
            "Single blocks",
            key=f"{key}-single",
            placeholder="IN04-08=0, MID=0.5",
            help="Blocks are named as in the X-ray. A list of A1111's LoRA Block Weight counts alone.",
        )
        single = (single or "").strip()
        try:
            make_strength(blocks=single)
        except StudioError as error:
            shell.complain(error)
    if single and "=" not in single:  # a list has a value for every block
        return single
    return ",".join([*entries, *filter(None, [single])])
