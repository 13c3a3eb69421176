"""`push_to_hub`: upload a recipe, a registry file, solver tables or a comparison, whichever a path holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checks import one_of_types
from ..comparison.reading import FILE, FOLDER
from ..comparison.sharing import push_folder
from ..errors import ModelError, UsageError
from ..hub.address import Address
from ..hub.cards import README, place_of_card
from ..hub.upload import Destination
from ..io.paths import expanded
from ..pretrained.hub_files import RECIPE
from ..public import public
from ..registry.catalogue import NAME, read
from ..registry.plain_yaml import parse, read_text
from ..registry.schema import SCHEMA
from ..sampling.recipe import Recipe
from ..sampling.sampler_files import is_recipe
from ..sampling.table import tables_in
from ..tuning.result import Tuning
from .registry_card import TITLE, make_card

KINDS = "a recipe, a registry file, a solver table, a folder of tables, or a folder that `compare` has written"


@public
def push_to_hub(
    source: str | Path,
    repo: str,
    path: str | None = None,
    *,
    revision: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
) -> str:
    """Check a file or folder of this library, and upload it with a card to a Hub repository, in one commit.

    Args:
        source: a recipe (`Recipe.save`), a registry file, a solver table or a folder of them (`tune`), or a folder that
            `Comparison.save` has written. Nothing in it is run.
        repo: "owner/name"; created if it does not exist.
        path: in the repository, of the file, or of the folder of a comparison. By default recipe.yaml, registry.yaml
            and compare; tables are always in the folder `sdesamplers`.
        revision: the branch, "main" by default; created if it does not exist.
        private: make a new repository private, or public; the owner's default if None.
        token: of the Hub; that of the login by default.
        commit_message: of the commit.
        create_pr: propose the files in a pull request, for a repository that you may not write to.

    Returns:
        The address of the commit, or of the pull request.

    Raises:
        ModelError: no connection or no permission; in one line.
        UsageError: none of these, or not valid; a registry file that lists plugins or names files of this machine.

    Example:
        >>> sds.push_to_hub("registry.yaml", "owner/registry")
        >>> sds.use_registry("hf://owner/registry")
    """
    one_of_types("source", source, (str, Path), "the path of a file or folder")
    file, to = expanded(source), Destination(repo, revision, token)
    how: dict[str, Any] = {"private": private, "commit_message": commit_message, "create_pr": create_pr}
    if not file.exists():
        raise UsageError(f"{source}: no such file or folder")
    if file.is_dir() and (file / FILE).is_file():
        return push_folder(file, to, path or FOLDER, **how)
    if is_registry(file):
        return push_registry(file, to, path or NAME, **how)
    how |= {"revision": revision, "token": token}
    if file.is_file() and is_recipe(file):
        return Recipe.load(file).push_to_hub(repo, path or RECIPE, **how)
    if path is not None:
        raise UsageError(f"solver tables are always in the folder 'sdesamplers' of a repository, not at {path!r}")
    try:
        tables = tables_in(file, str(source))
    except UsageError as reason:
        raise UsageError(f"{reason}; push takes {KINDS}") from None
    # A folder may have tables of several guidance scales for one number of evaluations, so that is not the key.
    return Tuning(dict(enumerate(tables))).push_to_hub(repo, **how)


def is_registry(file: Path) -> bool:
    """True if a file has a key of a registry file that recipes do not have."""
    if not file.is_file() or file.suffix.lower() not in (".yaml", ".yml"):
        return False
    data = parse(read_text(file), file)
    return isinstance(data, dict) and bool(set(data) & (set(SCHEMA["properties"]) - {"$schema"}))


def push_registry(
    file: Path, to: Destination, path: str, *, private: bool | None, commit_message: str | None, create_pr: bool
) -> str:
    """Upload a registry file, as it is, with the recipes that it names beside it; return the address of the commit.

    Raises:
        ModelError: no connection or no permission.
        UsageError: not valid, or with plugins or local files, which a registry on the Hub may not have.
    """
    address = Address.parse(f"{to.source}/{path}")
    catalogue = read(file, allow_plugins=False, address=address)
    for reason in catalogue.unread.values():
        raise ModelError(reason)
    if not create_pr:
        to.create(private)
    folder = address.path.rpartition("/")[0]
    files: Mapping[str, bytes] = {address.path: file.read_bytes()}
    for recipe in {place for place, _ in catalogue.recipe_files.values() if place.is_relative_to(file.parent)}:
        beside = recipe.relative_to(file.parent).as_posix()
        files = {**files, "/".join(filter(None, (folder, beside))): recipe.read_bytes()}
    if place_of_card(to, to.names(), TITLE, "") == README:
        files = {**files, README: make_card(catalogue, address).encode()}
    return to.commit(files, commit_message or f"Add the registry file {address.path}", create_pr=create_pr)
