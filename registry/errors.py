"""Errors that a person reads: one line that names the thing, what is wrong and what to do."""


class StudioError(Exception):
    """A fault with a one-line message `<thing>: <what is wrong>. <what to do>`; the command line exits 1.

    Args:
        thing: The file, field or object at fault, as its owner would name it.
        wrong: What is wrong with it; no full stop at the end.
        do: The next action, a full sentence without the full stop; may be empty.
    """

    exit_code = 1

    def __init__(self, thing: str, wrong: str, do: str = "") -> None:
        self.thing, self.wrong, self.do = thing, wrong, do
        message = f"{thing}: {wrong}." + (f" {do.rstrip('.')}." if do else "")
        super().__init__(" ".join(message.split()))

    def __reduce__(self) -> tuple[type["StudioError"], tuple[str, str, str]]:
        return type(self), (self.thing, self.wrong, self.do)


class BadInput(StudioError, ValueError):
    """What was given cannot be used as it is; the command line exits 2."""

    exit_code = 2


class NotFound(BadInput):
    """No such base, data set, run, adapter or file."""


class WorkspaceBusy(StudioError):
    """Another process holds the workspace."""


class Damaged(StudioError):
    """A file or the catalog is not what was written."""


def several(count: int, one: str, many: str = "") -> str:
    """`count` things in words: "1 picture", "3 pictures"; `many` where an s is not enough."""
    return f"{count} {one if count == 1 else many or one + 's'}"
