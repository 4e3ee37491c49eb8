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


def changes(recipe: Row, base: str) -> str:
    """A run's recipe in a line: the preset for its base, and what it has in place of that.

    Args:
        recipe: As the run keeps it; {} = none is known.
        base: Name of the base; "" = since removed.
    """
    if not recipe:
        return ""
    from registry.errors import BadInput
    from studio.app.words import value_text
    from trainers.recipe import differences, preset_name, thaw

    try:
        thawed = thaw(recipe)
    except BadInput:  # of another version: the rest is shown all the same
        return "see --json"
    name = preset_name(thawed.family, thawed.goal, base)
    found = ", ".join(f"{one.key}={value_text(one.value)}" for one in differences(thawed, name))
    return f"{name} with {found}" if found else name
