"""The browser of the tests. `python -m tests.support.browser` installs one when none is found."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.debian import install, may_install

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

PATIENCE = 30_000  # milliseconds for what a busy machine shows late; the usual 5 s were too few
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser() -> str | None:
    """Path of a system Chromium or Chrome, or of Playwright's own; None when there is neither."""
    for name in NAMES:
        if path := shutil.which(name):
            return path
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if Path(own).exists() else None


def launch_arguments() -> list[str]:
    """Chromium switches: no sandbox as root, nothing that calls home."""
    switches = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    switches += ["--disable-component-update", "--disable-sync"]
    return [*switches, "--no-sandbox"] if os.geteuid() == 0 else switches


@contextlib.contextmanager
def browser() -> "Iterator[Browser]":
    """A Chromium without a window."""
    from playwright.sync_api import sync_playwright

    path = find_browser()
    assert path, "no Chromium: run `make browser`"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=launch_arguments())
        yield chromium
        chromium.close()


@contextlib.contextmanager
def page_at(
    address: str, *, width: int = 1280, height: int = 900, within: "Browser | None" = None
) -> "Iterator[Page]":
    """An open page, in a browser of its own or `within` one; what it shows is waited for up to `PATIENCE`."""
    from playwright.sync_api import expect

    expect.set_options(timeout=PATIENCE)
    with contextlib.nullcontext(within) if within else browser() as chromium:
        page = chromium.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(PATIENCE)
        page.goto(address)
        yield page
        page.close()


def rest(page: "Page") -> None:
    """Wait until the page's script rests: a click while it runs may be lost on what opens with a rerun."""
    from playwright.sync_api import expect

    app = page.locator("[data-testid=stApp]")
    expect(app).to_have_attribute("data-test-script-state", "notRunning")


def only(found: "Locator") -> "Locator":
    """What is found, once it is there a single time.

    While a page is drawn anew, an element may stand beside the one that takes its place, and to act on both
    is refused at once.
    """
    from playwright.sync_api import expect

    expect(found).to_have_count(1)
    return found


def write(field: "Locator", text: str) -> None:
    """Fill a field and leave it as a person does, by the tabulator.

    Nothing is written while a dialog closes: it takes the focus back, and a field that has lost the focus
    before it is left keeps its text to itself.
    """
    from playwright.sync_api import expect

    expect(field.page.get_by_role("dialog")).to_have_count(0)
    only(field).fill(text)
    field.press("Tab")


def install_browser() -> None:
    """Debian's Chromium when we are root on Debian, else Playwright's own."""
    if may_install() and install("chromium"):
        return
    subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], check=True)


def main() -> int:
    """Install when missing; 1 when there is still none."""
    if find_browser() is None:
        install_browser()
    found = find_browser()
    if found is None:
        sys.stderr.write("error: browser: none could be installed. Install Chromium and run again.\n")
        return 1
    sys.stdout.write(f"browser: {found}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
