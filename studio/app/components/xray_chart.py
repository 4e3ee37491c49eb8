"""Bars by block, in the order in which data takes them."""

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from studio.app import theme

PART_WORDS = {
    "unet": "picture side (UNet)",
    "transformer": "picture side (transformer)",
    "text_encoder": "text side (text encoder)",
    "text_encoder_2": "text side, second (text encoder 2)",
    "text_encoder_3": "text side, third (text encoder 3)",
}


def share_bars(blocks: Sequence[Mapping[str, Any]], *, key: str) -> None:
    """How much of the whole change lies in each block, coloured by component."""
    labels = [block["block"] for block in blocks]
    parts = dict.fromkeys(block["component"] for block in blocks)
    series = [
        {
            "type": "bar",
            "name": PART_WORDS.get(part, part),
            "stack": "share",
            "data": [round(100 * b["share"], 2) if b["component"] == part else None for b in blocks],
        }
        for part in parts
    ]
    chart = _chart(labels, series) | {"legend": {"top": 0, "left": 0, "itemWidth": 12, "itemHeight": 12}}
    chart["grid"] |= {"top": 34 if len(parts) < 3 else 64}
    most = max(blocks, key=lambda block: block["share"])
    alt = f"Share of the change by block; the largest is {most['block']} with {most['share']:.0%}"
    st.echarts_chart(chart, height=280, key=key, alt=alt)


def likeness_bars(blocks: Mapping[str, float], *, key: str) -> None:
    """Similarity of two adapters by block, from -100 to 100 percent."""
    values = [round(100 * value, 1) for value in blocks.values()]
    series = [{"type": "bar", "name": "alike", "data": values}]
    chart = _chart(list(blocks), series)
    if min(values, default=0) >= 0:
        chart["yAxis"] |= {"min": 0, "max": 100}
    else:
        chart["yAxis"] |= {"min": -100, "max": 100}
    st.echarts_chart(chart, height=220, key=key, alt="Similarity by block")


def _chart(labels: list[str], series: list[dict[str, Any]]) -> dict[str, Any]:
    dark = st.context.theme.type == "dark"
    return {
        "animation": False,
        "color": list(theme.CATEGORIES_DARK if dark else theme.CATEGORIES),
        "grid": {"left": 8, "right": 12, "top": 12, "bottom": 8, "containLabel": True},
        "tooltip": {"trigger": "item", "valueFormatter": "%.1f %%"},
        "xAxis": {
            "type": "category",
            "data": labels,
            "axisTick": {"alignWithLabel": True},
            "axisLabel": {"rotate": 60 if len(labels) > 8 else 0, "fontSize": 11, "hideOverlap": True},
        },
        "yAxis": {"type": "value", "splitNumber": 4, "axisLabel": {"formatter": "{value} %"}},
        "series": [{"barCategoryGap": "25%", "barMaxWidth": 48} | item for item in series],
    }
