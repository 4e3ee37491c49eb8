"""`torch.distributed.run` whose ranks are forked from it, so that nobody loads the libraries again.

`python -m tests.support.launcher ARGUMENTS`, to be started by `tests.support.forked`. A rank comes to be in
another way; its environment, session, exit code and signals are the launcher's work as ever.
"""

import multiprocessing
import subprocess
from collections.abc import Mapping, Sequence
from typing import IO

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

from tests.support.forked import become


class Rank:
    """What `subprocess.Popen` is to torch's launcher."""

    def __init__(
        self,
        args: Sequence[str],
        env: Mapping[str, str],
        stdout: IO[str] | None,
        stderr: IO[str] | None,
        start_new_session: bool,
    ) -> None:
        self.args = args
        _, module, *arguments = (word for word in args[1:] if word != "-u")
        streams = [
            0,
            *(own if stream is None else stream.fileno() for own, stream in ((1, stdout), (2, stderr))),
        ]
        call = (module, arguments, dict(env), streams, [], start_new_session)
        self._process = multiprocessing.get_context("fork").Process(target=become, args=call)
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if (code := self.returncode) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return code


if __name__ == "__main__":
    subprocess_handler.Popen = Rank
    run.main()
