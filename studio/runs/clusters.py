"""A Ray cluster and its Jobs API: what is set about it, and the few questions that the studio asks it.

Ray is imported when the first question is asked (2 s, 90 MB): the studio works without it.
"""

import logging
import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from registry.errors import StudioError
from studio.settings import Settings

INSTALL = "install it: pip install 'lora-studio[ray]'"
SECONDS = (5.0, 30.0)  # to connect; to answer: a busy head has taken 10
_OVERRIDES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_STATUS = re.compile(r"status code (\d+)")


class NoAnswer(StudioError):
    """The cluster does not answer, or not to us, for now: nothing can be concluded about its jobs."""

    text: str = ""  # as it came; what a person reads of it is cut


@dataclass(frozen=True)
class Cluster:
    """What is set about it; see `Settings` for the meaning."""

    address: str
    home: str  # of the workspace, for the nodes
    token: str = field(default="", repr=False)
    python: str = "python"
    gpus: float = 1.0
    cpus: float = 1.0

    @classmethod
    def of(cls, home: Path) -> "Cluster":
        """As studio.toml and the environment have it now.

        Args:
            home: Of the workspace, here.

        Raises:
            StudioError: no cluster is set, or Ray is not installed.
        """
        settings = Settings.load(home)
        if not settings.ray_address:
            do = "set its address on the Settings page or with `studio cluster set ADDRESS`"
            raise StudioError("Ray cluster", "is not set up", do)
        if find_spec("ray") is None or find_spec("aiohttp") is None:
            raise StudioError("Ray", "is not installed here", INSTALL)
        return cls(
            address=settings.ray_address.rstrip("/"),
            home=settings.ray_storage.rstrip("/") or str(home.resolve()),
            token=settings.ray_token,
            python=settings.ray_python,
            gpus=settings.ray_gpus,
            cpus=settings.ray_cpus,
        )


@dataclass(frozen=True)
class Seen:
    """What the cluster says of a job."""

    status: str  # PENDING, RUNNING, STOPPED, SUCCEEDED, FAILED
    message: str = ""
    error: str = ""  # Ray's JobErrorType
    exit_code: int | None = None

    @property
    def over(self) -> bool:
        """Whether it will not run any more."""
        return self.status in {"STOPPED", "SUCCEEDED", "FAILED"}


class Jobs:
    """The Jobs API of a cluster. Every question raises `NoAnswer` when there is none.

    Args:
        cluster: Which; not asked before the first question.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._client: Any = None

    def version(self) -> str:
        """Of Ray on the cluster."""
        with self._asking():
            return str(self._connect().get_version())

    def submit(
        self, job: str, entrypoint: str, run_id: str, processes: int, variables: dict[str, str]
    ) -> None:
        """Hand a job over; one that is there already stays as it is."""
        try:
            with self._asking():
                self._connect().submit_job(
                    submission_id=job,
                    entrypoint=entrypoint,
                    runtime_env={"env_vars": variables},
                    metadata={"lora_studio_run": run_id},
                    entrypoint_num_gpus=self.cluster.gpus * processes or None,
                    entrypoint_num_cpus=self.cluster.cpus * processes,
                )
        except NoAnswer as error:
            if "already exists" not in error.text:
                raise

    def look(self, job: str) -> Seen | None:
        """What is known of a job; None when the cluster knows none of this name."""
        try:
            with self._asking():
                details = self._connect().get_job_info(job)
        except NoAnswer as error:
            if f"{job} does not exist" in error.text:
                return None
            raise
        return Seen(
            status=str(details.status),
            message=str(details.message or ""),
            error=str(getattr(details.error_type, "value", details.error_type) or ""),
            exit_code=details.driver_exit_code,
        )

    def stop(self, job: str) -> None:
        """SIGTERM to its processes, SIGKILL after a minute; nothing for one that is over."""
        with self._asking():
            self._connect().stop_job(job)

    def log(self, job: str) -> str:
        """What it and Ray have printed."""
        with self._asking():
            return str(self._connect().get_job_logs(job))

    def _connect(self) -> Any:
        if self._client is None:
            token = self.cluster.token
            headers = {"Authorization": f"Bearer {token}"} if token else None
            with _ours_alone():
                self._client = _client_class()(self.cluster.address, headers=headers)
        return self._client

    @contextmanager
    def _asking(self) -> Generator[None]:
        """Whatever goes wrong in Ray's client or between it and the cluster is no answer, in one line."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  its errors are of a dozen kinds, most of them RuntimeError
            self._client = None
            told = self._no_answer(error)
            told.text = str(error)
            raise told from None

    def _no_answer(self, error: Exception) -> NoAnswer:
        thing, text = f"Ray cluster {self.cluster.address}", str(error)
        found = _STATUS.search(text)
        if type(error).__name__ == "AuthenticationError" or (found and found[1] in {"401", "403"}):
            wrong = "does not take our token" if self.cluster.token else "asks for a token"
            return NoAnswer(
                thing, wrong, "set ray_token on the Settings page or with `studio cluster set --token`"
            )
        if found:
            words = " ".join(text.split())
            words = (
                words if len(words) < 300 else f"... {words[-300:]}"
            )  # a traceback says at its end what it was
            return NoAnswer(thing, f"answers with error {found[1]} ({words})")
        return NoAnswer(thing, f"cannot be reached ({type(error).__name__})")


def _client_class() -> Any:
    """Ray's client with a limit to waiting: it has none, and one lost packet would be waited for forever."""
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray").setLevel(logging.WARNING)

    class Client(JobSubmissionClient):
        def _do_request(self, *words: Any, **options: Any) -> Any:
            return cast("Any", super())._do_request(*words, **({"timeout": SECONDS} | options))

    return Client


@contextmanager
def _ours_alone() -> Generator[None]:
    """Ray's own variables would silently win over the address that is set."""
    kept = {name: value for name in _OVERRIDES if (value := os.environ.pop(name, None)) is not None}
    try:
        yield
    finally:
        os.environ.update(kept)
