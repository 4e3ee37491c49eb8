"""What the commands of the pocket bases share: lines with the time, and errors as one line."""

import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

from registry.errors import StudioError


def say(text: Any) -> None:
    """A line on stderr, at once."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


def end_with(main: Callable[[], int]) -> NoReturn:
    """Run a command and end the process with its exit code."""
    try:
        sys.exit(main())
    except StudioError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
