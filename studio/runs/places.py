"""Where runs train: on the machine of the worker, or on a cluster."""

from typing import TYPE_CHECKING

from registry.errors import BadInput, StudioError
from registry.records import PLACES
from studio.runs.clusters import Cluster
from studio.runs.executors import Executor, LocalExecutor
from studio.runs.ray_executor import RayExecutor
from studio.runs.standby import Standby

if TYPE_CHECKING:
    from studio.workspace import Workspace


def check_place(ws: "Workspace", place: str) -> None:
    """Refuse a place where nothing can train.

    Raises:
        BadInput: no such place, or nothing is set up there.
    """
    if place not in PLACES:
        raise BadInput(f"--on {place}", "is no place to train", f"use one of {', '.join(PLACES)}")
    if place != PLACES[0]:
        try:
            Cluster.of(ws.home)
        except StudioError as error:
            raise BadInput(error.thing, error.wrong, error.do) from None


def executors(
    ws: "Workspace",
    *,
    local: Executor | None = None,
    ray: Executor | None = None,
    standby: Standby | None = None,
) -> dict[str, Executor]:
    """What starts trainers, by place; here the one on `standby` is taken where it fits."""
    here, cluster = PLACES
    return {here: local or LocalExecutor(ws.key.hex(), standby=standby), cluster: ray or RayExecutor(ws.home)}
