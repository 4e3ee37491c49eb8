"""The browser of the tests. `python -m tests.support.browser` installs one when none is found."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.debian import install, may_install

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
