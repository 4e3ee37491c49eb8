"""Colours and type: neutral greys, so that pictures keep their own colours, and cobalt as the one accent."""

from pathlib import Path

ACCENT = "#2B59C3"
ACCENT_DARK = "#8FB0FF"
HERE = Path(__file__).parent
CATEGORIES = (ACCENT, "#B9772A", "#3F8463", "#8A8A85")  # of charts
CATEGORIES_DARK = (ACCENT_DARK, "#D9A15C", "#7CC3A0", "#8A8A85")

_SHARED: dict[str, object] = {
    "theme.headingFont": "serif",
    "theme.headingFontWeights": [600, 600, 600],
    "theme.headingFontSizes": ["2.1rem", "1.45rem", "1.15rem"],
    "theme.metricValueFontSize": "1.35rem",
    "theme.metricValueFontWeight": 600,
    "theme.baseRadius": "0.5rem",
    "theme.buttonRadius": "0.5rem",
    "theme.showWidgetBorder": True,
    "theme.showSidebarBorder": True,
}
_LIGHT: dict[str, object] = {
    "primaryColor": ACCENT,
    "backgroundColor": "#FFFFFF",
    "secondaryBackgroundColor": "#F4F4F2",
    "textColor": "#1D1D1B",
    "borderColor": "#DEDEDA",
    "linkColor": ACCENT,
    "codeBackgroundColor": "#F4F4F2",
    "codeTextColor": "#1D1D1B",
    "sidebar.backgroundColor": "#F8F8F6",
    "sidebar.secondaryBackgroundColor": "#ECECE8",
    "chartCategoricalColors": [ACCENT, "#8A8A85", "#B9772A"],
}
_DARK: dict[str, object] = {
    "primaryColor": ACCENT_DARK,
    "backgroundColor": "#171716",
    "secondaryBackgroundColor": "#232322",
    "textColor": "#ECECE8",
    "borderColor": "#3A3A38",
    "linkColor": ACCENT_DARK,
    "codeBackgroundColor": "#232322",
    "codeTextColor": "#ECECE8",
    "sidebar.backgroundColor": "#1C1C1B",
    "sidebar.secondaryBackgroundColor": "#2A2A28",
    "chartCategoricalColors": [ACCENT_DARK, "#8A8A85", "#D9A15C"],
}


def options() -> dict[str, object]:
    """Streamlit's theme options, light and dark; which one shows is the browser's or the person's choice."""
    light = {f"theme.light.{key}": value for key, value in _LIGHT.items()}
    dark = {f"theme.dark.{key}": value for key, value in _DARK.items()}
    return _SHARED | light | dark


# Streamlit writes white on primary buttons, which on the light blue of the dark theme has a contrast of 2.1,
# and darkens the blue under the pointer, where dark text needs it lighter.
_ON_DARK = """
[data-testid^="stBaseButton-primary"] { color: #171716; }
[data-testid^="stBaseButton-primary"]:is(:hover, :active) { background: #B3CAFF; border-color: #B3CAFF; }
[data-testid^="stBaseButton-tertiary"]:is(:hover, :active),
[data-testid="stPopoverButton"][kind="tertiary"]:is(:hover, :active) { color: #B3CAFF; }
[data-testid="stMultiSelectTagsContainer"] [data-tag] :is(span, button) { color: #171716; }
.ls-ranks { --bar: #8FB0FF; }
"""


def stylesheet(*, dark: bool) -> str:
    """What themes cannot say: widths, the name beside the mark, panels."""
    return f"<style>{(HERE / 'style.css').read_text(encoding='utf-8')}{_ON_DARK if dark else ''}</style>"
