"""One HTML file with all in it: it asks the network for nothing, so it can be sent to anyone."""

from html import escape


def html_page(title: str, style: str, body: str, script: str = "") -> str:
    """A document for light and dark screens.

    Args:
        title: As plain text.
        style: CSS.
        body: HTML; its pictures as data URLs.
        script: JavaScript; without any, none may run.
    """
    allowed = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    allowed += "; script-src 'unsafe-inline'" if script else ""
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
  content="{allowed}">
<title>{escape(title)}</title>
<style>
{style}</style>
{body}{f"<script>{chr(10)}{script}</script>{chr(10)}" if script else ""}</html>
"""
