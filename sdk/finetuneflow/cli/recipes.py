"""`ftf recipes`."""

from __future__ import annotations

from typing import Annotated

import typer

from finetuneflow.cli.config import toml_text
from finetuneflow.cli.session import Json, print_json, print_rows, session

app = typer.Typer(no_args_is_help=True, help="Presets for `ftf train --recipe`.")


@app.command("list")
def list_recipes(ctx: typer.Context, json: Json = False) -> None:
    """List the recipes."""
    here = session(ctx)
    recipes = here.client.recipes.list()
    if json:
        print_json(*(recipe.proto for recipe in recipes))
    else:
        print_rows(here.console, ["NAME", "DESCRIPTION"], ([recipe.name, recipe.description] for recipe in recipes))


@app.command()
def show(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the recipe.", show_default=False)],
    json: Json = False,
) -> None:
    """Show the values of a recipe as a file for `ftf train --config`."""
    here = session(ctx)
    recipe = here.client.recipes.get(name)
    if json:
        print_json(recipe.proto)
    else:
        here.console.print(f"# {recipe.name}: {recipe.description}")
        here.console.print(toml_text(recipe.spec))
