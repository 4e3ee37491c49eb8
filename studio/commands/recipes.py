"""`studio recipes`: the shipped presets, with the reason of every value."""

import typer

from studio.commands.shared import Row, invocation, show_rows, write_json, write_line

app = typer.Typer(name="recipes", help="Shipped recipes: list, show.", no_args_is_help=True)

ELSEWHERE = "see `studio recipes list`"


@app.command("list")
def list_() -> None:
    """List the shipped recipes.

    Example: studio recipes list
    """
    from trainers.recipe import preset_by_name, preset_names

    rows: list[Row] = []
    for name in preset_names():
        recipe = preset_by_name(name)
        shown = {"id": name, "name": name, "family": recipe.family, "goal": recipe.goal}
        rows.append(
            shown | {"steps": recipe.train.max_steps, "rank": recipe.adapter.rank, "lr": recipe.optimizer.lr}
        )
    show_rows(
        rows,
        [(key, lambda r, key=key: r[key]) for key in ("name", "family", "goal", "steps", "rank", "lr")],
        empty="No recipes found.",
    )


@app.command()
def show(name: str) -> None:
    """Print a recipe as TOML, with the reason of every value; save it, edit it, train with it.

    Example: studio recipes show sd15-style > my.toml
    """
    from registry.errors import NotFound
    from trainers.recipe import preset_by_name, preset_names, preset_text

    given, name = name, name.replace("/", "-")
    if name not in preset_names():
        near = ", ".join(known for known in preset_names() if name and known.startswith(name))
        raise NotFound(f"recipe {given!r}", "is not shipped", f"there is {near}" if near else ELSEWHERE)

    if invocation.json:
        write_json(preset_by_name(name).model_dump(mode="json"))
    else:
        write_line(preset_text(name).rstrip())
