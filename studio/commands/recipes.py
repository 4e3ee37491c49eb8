"""`studio recipes`: the shipped presets, with the reason of every value."""

import typer

from studio.commands.shared import invocation, show_rows, write_json, write_line

app = typer.Typer(name="recipes", help="Shipped recipes: list, show.", no_args_is_help=True)


@app.command("list")
def list_() -> None:
    """List the shipped recipes.

    Example: studio recipes list
    """
    from trainers.recipe import preset_by_name, preset_names

    rows = [{"id": name, "name": name, "recipe": preset_by_name(name)} for name in preset_names()]
    show_rows(
        [
            {
                "id": row["id"],
                "name": row["name"],
                "family": row["recipe"].family,
                "goal": row["recipe"].goal,
                "steps": row["recipe"].train.max_steps,
                "rank": row["recipe"].adapter.rank,
                "lr": row["recipe"].optimizer.lr,
            }
            for row in rows
        ],
        [(key, lambda r, key=key: r[key]) for key in ("name", "family", "goal", "steps", "rank", "lr")],
        empty="No recipes found.",
    )


@app.command()
def show(name: str) -> None:
    """Print a recipe as TOML, with the reason of every value; save it, edit it, train with it.

    Example: studio recipes show sd15-style > my.toml
    """
    from trainers.recipe import preset_by_name, preset_text

    if invocation.json:
        write_json(preset_by_name(name).model_dump(mode="json"))
    else:
        write_line(preset_text(name).rstrip())
