"""The workspace's inbox: uploads and downloads on their way in."""

from pathlib import Path
from typing import TYPE_CHECKING

from studio.imports import text
from studio.imports.scan import ADAPTERS

if TYPE_CHECKING:
    from studio.workspace import Workspace

INBOX = "inbox"  # below the workspace


def inbox_path(ws: "Workspace", folder: str, name: str) -> Path:
    """A place in the inbox for a file of this foreign name."""
    stem = text.title(Path(name.replace("\\", "/")).name) or "adapter"
    suffix = Path(stem).suffix.lower()
    return ws.home / INBOX / folder / (stem if suffix in ADAPTERS else f"{stem}.safetensors")
