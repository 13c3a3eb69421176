"""Commands on files that are shared: push, schema."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UnknownNameError
from .group import cli
from .streams import say
from .tables import emit

if TYPE_CHECKING:
    from ..hub.upload import Destination


def destination(push: str, token: str | None) -> Destination:
    """The repository that OWNER/NAME or OWNER/NAME@BRANCH names.

    Raises:
        UsageError: it is neither.
    """
    from ..hub.upload import Destination

    repo, _, branch = push.partition("@")
    return Destination(repo, branch or None, token)


@cli.command("push")
@click.argument("source", metavar="FILE_OR_FOLDER")
@click.argument("repo", metavar="OWNER/NAME[@BRANCH]")
@click.option("--path", help="Path in the repository; by default recipe.yaml, registry.yaml or the folder compare.")
@click.option("--private", is_flag=True, help="Create the repository as a private one.")
@click.option("--create-pr", is_flag=True, help="Propose the files in a pull request.")
@click.option("--message", help="Message of the commit.")
@click.option("--token", help="Hub token; by default that of your Hub login.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def push_command(source: str, repo: str, as_json: bool, message: str | None, private: bool, **kwargs: Any) -> None:
    """Upload a recipe, a registry file, solver tables or a comparison to the Hub, with a card.

    FILE_OR_FOLDER is the file of a recipe, a registry file, a solver table, a folder of tables, or the --out folder of
    compare. It is checked first, and nothing in it is run.
    """
    from ..sharing.push import push_to_hub

    to = destination(repo, kwargs.pop("token"))
    made = push_to_hub(
        Path(source),
        to.repo,
        revision=to.revision,
        token=to.token,
        private=private or None,
        commit_message=message,
        **kwargs,
    )
    if as_json:
        emit({"pushed": made, "source": to.source})
    else:
        say(made)


@cli.command("schema")
@click.argument("name", metavar="recipe|registry")
def schema_command(name: str) -> None:
    """Print the JSON Schema of a recipe's file or of a registry file, with the names of all installed plugins.

    Editors use it to check files and to complete names and options: # yaml-language-server: $schema=FILE
    """
    from ..registry.editor_schemas import SCHEMAS
    from ..registry.registry import default_registry

    if name not in SCHEMAS:
        raise UnknownNameError("schema", name, SCHEMAS, f" (known: {', '.join(SCHEMAS)})")
    emit(SCHEMAS[name](default_registry()))
