"""``lightning-distilbert recipes``, and how ``--config`` finds them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_distilbert.commands.parsing import PlainParser
from lightning_distilbert.errors import DistillationError, nearest

RECIPES = Path(__file__).parents[1] / "recipes"


def main(arguments: Sequence[str]) -> None:
    """Print the recipes that this package brings, each with its first line.

    Args:
        arguments: None but ``--help`` are taken.
    """
    parser = PlainParser(
        prog="lightning-distilbert recipes",
        description="List the recipes that come with this package, for fit --config recipes/NAME.yaml.",
        allow_abbrev=False,
    )
    parser.parse_args(arguments)
    for path in sorted(RECIPES.glob("*.yaml")):
        first = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        print(f"recipes/{path.name}: {first}")


def find_recipes(arguments: Sequence[str]) -> list[str]:
    """Replace ``--config recipes/NAME.yaml`` by the recipe that this package brings, unless such a file is here.

    Args:
        arguments: The command line.

    Returns:
        The command line with full paths.

    Raises:
        DistillationError: If there is no such recipe, nor such a file here.

    Example:
        >>> find_recipes(["fit", "--config", "mine/first.yaml"])
        ['fit', '--config', 'mine/first.yaml']
    """
    found = []
    for position, argument in enumerate(arguments):
        prefix, _, value = argument.rpartition("=")
        option = prefix or (arguments[position - 1] if position else "")
        path = Path(value)
        # another folder is the user's own, where a missing file is a mistake; and a config may also be YAML itself
        by_name = path.parent in (Path("recipes"), Path()) and path.suffix in (".yaml", ".yml") and "\n" not in value
        if option in ("--config", "-c") and by_name and not path.exists():
            recipe = _recipe(path.name)
            argument = f"{prefix}={recipe}" if prefix else str(recipe)
        elif option in ("--config", "-c") and "\n" not in value and path.is_file():
            try:
                path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise DistillationError(f"{value} is no UTF-8 text ({error}). Save it as UTF-8.") from error
        found.append(argument)
    return found


def _recipe(name: str) -> Path:
    recipe = RECIPES / name
    if recipe.is_file():
        return recipe
    known = sorted(path.name for path in RECIPES.glob("*.yaml"))
    raise DistillationError(
        f"There is no recipe {name!r}, and no such file in {str(Path.cwd())!r}.{nearest(name, known)} "
        f"The recipes are {', '.join(known)}."
    )
