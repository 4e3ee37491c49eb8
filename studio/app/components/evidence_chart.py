"""The strength curve on a page."""

from collections.abc import Sequence

import streamlit as st

from studio.app import theme
from studio.evidence.figures import Point
from studio.evidence.words import MEASURES


def strength_chart(points: Sequence[Point], *, key: str) -> None:
    """Each figure over the strengths of one subject."""
    dark = st.context.theme.type == "dark"
    colours = [*(theme.CATEGORIES_DARK if dark else theme.CATEGORIES), "#E0705A" if dark else "#C2452D"]
    series = [
        {
            "type": "line",
            "name": measure.label,
            "data": [[p.weight, round(100 * getattr(p.figures, measure.name), 1)] for p in points],
            "symbolSize": 6,
        }
        for measure in MEASURES
    ]
    low = min((0.0, *(point.weight for point in points)))  # an adapter may be drawn against its direction
    chart = {
        "animation": False,
        "color": colours,
        "legend": {"top": 0, "left": 0, "itemWidth": 14, "itemHeight": 8},
        "grid": {"left": 8, "right": 16, "top": 52, "bottom": 24, "containLabel": True},
        "tooltip": {"trigger": "axis", "valueFormatter": "%.0f %%"},
        "xAxis": {"type": "value", "name": "strength", "nameLocation": "middle", "nameGap": 26, "min": low},
        "yAxis": {"type": "value", "splitNumber": 4, "axisLabel": {"formatter": "{value} %"}},
        "series": series,
    }
    st.echarts_chart(chart, height=300, key=key, alt="Figures of the adapter over its strength")
    with st.expander("What the lines mean"):
        for measure in MEASURES:
            st.markdown(f"- **{measure.label}**: {measure.hint}")
