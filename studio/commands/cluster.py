"""`studio cluster`: the Ray cluster that runs may be handed to."""

import sys
from typing import Annotated, Any

import typer

from studio.commands.shared import open_workspace, show_done, show_record

app = typer.Typer(
    name="cluster", help="A Ray cluster to train on: show, set; see docs/scale.md.", no_args_is_help=True
)


@app.command()
def show() -> None:
    """Show what is set, and ask the cluster whether it is there.

    Example: studio cluster show
    """
    from studio.runs.clusters import Cluster, Jobs, NoAnswer

    home = open_workspace().home
    cluster = Cluster.of(home)
    facts = described(home)
    try:
        show_record(facts | {"ray": Jobs(cluster).version()})
    except NoAnswer:
        show_record(facts)
        raise


@app.command("set")
def set_(
    address: Annotated[
        str, typer.Argument(help='Of the dashboard, http://HOST:8265; "" = no cluster any more.')
    ] = "-",
    storage: Annotated[
        str | None, typer.Option(help='Folder of this workspace as the nodes see it; "" = the same path.')
    ] = None,
    token: Annotated[
        bool, typer.Option("--token", help="Ask for the cluster's token; an empty answer takes it out.")
    ] = False,
    python: Annotated[str | None, typer.Option(help="What starts Python on a node.")] = None,
    gpus: Annotated[float | None, typer.Option(min=0, max=1, help="GPUs for each process.")] = None,
    cpus: Annotated[float | None, typer.Option(min=0, help="CPU cores for each process.")] = None,
    runs: Annotated[int | None, typer.Option(min=1, help="Runs handed over at a time.")] = None,
) -> None:
    """Set what is given and leave the rest as it is.

    Example: studio cluster set http://head:8265 --storage /mnt/studio --token
    """
    from registry.errors import BadInput
    from studio.settings import Settings

    given: dict[str, Any] = {
        "ray_storage": storage,
        "ray_python": python,
        "ray_gpus": gpus,
        "ray_cpus": cpus,
        "ray_runs": runs,
        "ray_address": None if address == "-" else address,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    if token:
        changes["ray_token"] = _asked_token()
    if not changes:
        raise BadInput("studio cluster set", "was given nothing to set", "see `studio cluster set --help`")
    home = open_workspace().home
    Settings.save(home, changes)
    facts = described(home)
    show_done(f"The cluster is {facts['address'] or 'not set'}.", facts)


def _asked_token() -> str:
    """From the keyboard, unseen; from a pipe its first line."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().strip()
    return str(typer.prompt("Token", default="", hide_input=True, show_default=False, err=True)).strip()


def described(home: Any) -> dict[str, Any]:
    """What is set, the token only as being there."""
    from studio.settings import Settings

    settings = Settings.load(home)
    return {
        "address": settings.ray_address,
        "token": "set" if settings.ray_token else "not set",
        "storage": settings.ray_storage or str(home),
        "python": settings.ray_python,
        "gpus": settings.ray_gpus,
        "cpus": settings.ray_cpus,
        "runs": settings.ray_runs,
    }
