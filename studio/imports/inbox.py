"""The workspace's inbox: uploads and downloads on their way in."""

from pathlib import Path
from typing import TYPE_CHECKING

from registry.files import TEMPORARY
from studio.imports import text
from studio.imports.scan import ADAPTERS

if TYPE_CHECKING:
    from studio.workspace import Workspace

INBOX = "inbox"  # below the workspace


def waiting(ws: "Workspace", folder: str) -> Path | None:
    """The file of a folder of the inbox, whole because it got its name; None where there is none."""
    files = (path for path in (ws.home / INBOX / folder).glob("*") if not path.name.endswith(TEMPORARY))
    return next((path for path in files if path.is_file()), None)


def inbox_path(ws: "Workspace", folder: str, name: str) -> Path:
    """A place in the inbox for a file of this foreign name."""
    stem = text.title(Path(name.replace("\\", "/")).name) or "adapter"
    suffix = Path(stem).suffix.lower()
    return ws.home / INBOX / folder / (stem if suffix in ADAPTERS else f"{stem}.safetensors")
