"""registry.yaml: the catalogue of models, recipes and names, validated, with errors that name file, line and key."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ..checks import warn
from ..errors import ModelError, UsageError
from ..hub.address import Address, is_address
from ..hub.download import fetch_file, find_file
from ..io.paths import expanded
from ..public import public
from .plain_yaml import Loader, parse, read_text
from .recipe_data import check_grids, recipe_in
from .schema import SCHEMA
from .validation import check_data, line_of

SHIPPED = Path(__file__).parent.parent / "registry.yaml"
NAME = "registry.yaml"
"""The registry file of a Hub repository whose address has no path."""
NAME_OF_RECIPE = "recipe.yaml"
"""The recipe of a Hub repository whose address has no path."""
REASONS = {
    "oneOf": "a model needs either repo and revision (a pinned commit or tag), or path",
    "pattern tables": "{value} must be a folder, or hf://owner/name@revision with a pinned commit or tag",
}
LOCAL = ("path", "metrics", "tables")
"""Keys of a model whose values are folders, unless they are addresses on the Hub."""
RECIPE_FILE = re.compile(r"^(?!hf://).*\.(?:ya?ml|json)$|^hf://[^/@\s]+/[^/@\s]+@[^@\s]+$", re.IGNORECASE)
"""The file of a recipe in `recipes`: a path, or an address on the Hub with a revision."""
PEER_KINDS = ("samplers", "spacings")


@public
@dataclass
class Catalogue:
    """The merged catalogue of all registry files.

    Attributes:
        models: name -> entry, with the folder of the file that contains the entry under "base". "tables" is a folder of
            solver tables, relative to that folder, or "hf://owner/name@revision".
        recipes: name -> sampler with options, grid and so on; those that a registry file names by the path of their
            file too.
        aliases, spacing_aliases, noise_aliases: other names of samplers and recipes, of spacings and of noise sources.
        peers: names in other libraries: peer -> "samplers" or "spacings" -> name -> the equivalent here, or the reason
            why there is none; and peer -> "methods" -> our sampler -> how the peer selects it by options.
        plugins: modules to import.
        origins: (section, name) -> the file that an entry comes from.
        recipe_files: name -> the file of a recipe that has one, and the keys above it in the file.
        unread: names of recipes whose files on the Hub cannot be read now -> the reason, with the place of the name.
        addresses: file -> its address on the Hub with the commit, of files from there.
    """

    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    recipes: dict[str, dict[str, Any]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    spacing_aliases: dict[str, str | dict[str, Any]] = field(default_factory=dict)
    noise_aliases: dict[str, str | dict[str, Any]] = field(default_factory=dict)
    peers: dict[str, dict[str, dict[str, str | dict[str, Any]]]] = field(default_factory=dict)
    plugins: list[str] = field(default_factory=list)
    origins: dict[tuple[str, str], Path] = field(default_factory=dict)
    addresses: dict[Path, Address] = field(default_factory=dict)
    recipe_files: dict[str, tuple[Path, tuple[str, ...]]] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)

    def overlay(self, other: Catalogue) -> Catalogue:
        """Return this catalogue with the entries of `other` added; they replace entries of the same name."""
        replaced = {*other.recipes, *other.unread}
        kept = {name: file for name, file in self.recipe_files.items() if name not in replaced}
        unread = {name: reason for name, reason in self.unread.items() if name not in replaced}
        return Catalogue(
            {**self.models, **other.models},
            {**{name: entry for name, entry in self.recipes.items() if name not in replaced}, **other.recipes},
            {**self.aliases, **other.aliases},
            {**self.spacing_aliases, **other.spacing_aliases},
            {**self.noise_aliases, **other.noise_aliases},
            {
                peer: {
                    kind: {**self.peers.get(peer, {}).get(kind, {}), **other.peers.get(peer, {}).get(kind, {})}
                    for kind in PEER_KINDS
                }
                for peer in {**self.peers, **other.peers}
            },
            self.plugins + other.plugins,
            {**self.origins, **other.origins},
            {**self.addresses, **other.addresses},
            {**kept, **other.recipe_files},
            {**unread, **other.unread},
        )

    def tables(self, model: str) -> str | None:
        """Return the source of the solver tables that a model's entry names: a folder, or hf://owner/name@revision."""
        entry = self.models.get(model, {})
        named: str | None = entry.get("tables")
        if named is None or is_address(named):
            return named
        return str(Path(entry["base"]) / expanded(named))

    def where(self, section: str, name: str, *keys: str) -> str:
        """Return `file:line: section.name.key`, for errors in an entry that are found only when it is used.

        For a recipe with a file of its own it is that file, with the line and the keys there.
        """
        file, above = self.origins[section, name], (*section.split("."), name)
        if section == "recipes" and name in self.recipe_files:
            file, above = self.recipe_files[name]
        try:
            line = str(line_of(read_text(file), [*above, *keys]))
        except (OSError, ValueError, yaml.YAMLError):
            line = "?"
        return ": ".join(filter(None, (f"{self.addresses.get(file, file)}:{line}", ".".join((*above, *keys)))))


def read(file: Path, *, allow_plugins: bool, check: bool = True, address: Address | None = None) -> Catalogue:
    """Read and validate one registry file.

    Args:
        allow_plugins: True if the user named this file, so that its `plugins` may be imported.
        check: False to skip the validation (of the shipped file, which the tests validate).
        address: of a file from the Hub, which may name neither plugins nor files of this machine.

    Raises:
        UsageError: unreadable, not YAML, or not valid under the schema; with file, line and key.
    """
    text, shown = read_text(file), address or file
    data = parse(text, shown) if check else yaml.load(text, Loader=Loader)
    data = {} if data is None else data
    if check:
        check_data(data, text, shown, SCHEMA, REASONS)
    if address is not None:
        refuse_local(data, text, address)
    elif data.get("plugins") and not allow_plugins:
        line = line_of(text, ["plugins"])
        raise UsageError(
            f"{file}:{line}: plugins: only a file named by --registry or $SDESAMPLERS_REGISTRY may import plugins"
        )
    models = {name: {**entry, "base": str(file.parent)} for name, entry in (data.get("models") or {}).items()}
    keys = ("aliases", "spacing_aliases", "noise_aliases", "peers")
    sections: dict[str, dict[str, Any]] = {
        "models": models,
        "recipes": {},
        **{key: data.get(key) or {} for key in keys},
    }
    addresses = {} if address is None else {file: address}
    recipe_files: dict[str, tuple[Path, tuple[str, ...]]] = {}
    unread: dict[str, str] = {}
    for name, entry in (data.get("recipes") or {}).items():
        if isinstance(entry, Mapping):
            if check:
                check_grids(entry, text, shown, ("recipes", name))
            sections["recipes"][name] = {key: value for key, value in entry.items() if key != "$schema"}
            continue
        where = f"{shown}:{line_of(text, ['recipes', name])}: recipes.{name}"
        try:
            place, home = recipe_file(entry, file, address, where)
        except ModelError as error:  # without a connection, the other names are of use
            unread[name] = f"{where}: {error}"
            continue
        if home is not None:
            addresses[place] = home
        sections["recipes"][name], above = read_recipe(place, home or place, where)
        recipe_files[name] = place, above
    origins = {(section, name): file for section, entries in sections.items() for name in entries}
    for peer, kinds in sections["peers"].items():
        origins |= {(f"peers.{peer}.{kind}", name): file for kind, names in kinds.items() for name in names}
    origins |= {("plugins", name): file for name in data.get("plugins", [])}
    return Catalogue(
        **sections,
        plugins=data.get("plugins") or [],
        origins=origins,
        addresses=addresses,
        recipe_files=recipe_files,
        unread=unread,
    )


def recipe_file(entry: str, file: Path, address: Address | None, where: str) -> tuple[Path, Address | None]:
    """The file of a recipe that a registry file names, and its address if it is on the Hub.

    A path is relative to the registry file. In a registry file on the Hub it is one of the same repository, at the same
    revision.

    Args:
        entry: the path, or an address on the Hub with a revision.
        file: the registry file.
        address: of the registry file, if it is on the Hub.
        where: the place of the entry, for messages.

    Raises:
        ModelError: the repository cannot be read.
        UsageError: neither the path of a recipe's file nor an address with a revision.
    """
    if not RECIPE_FILE.search(entry):
        if is_address(entry):
            raise UsageError(
                f"{where}: {entry!r} needs a revision, a commit or tag: hf://owner/name@revision/path.yaml"
            )
        raise UsageError(
            f"{where}: {entry!r} is neither a recipe, a mapping with the key 'sampler', nor the path of its file "
            "(.yaml, .yml, .json); another name of a sampler or a recipe belongs into `aliases`"
        )
    if is_address(entry):
        return find_file(entry, NAME_OF_RECIPE)
    if address is None:
        return file.parent / expanded(entry), None
    folder = address.path.rpartition("/")[0]
    try:
        home = Address.parse(str(address.inside("/".join(filter(None, (folder, entry))))))
    except UsageError:
        raise UsageError(
            f"{where}: a registry on the Hub may not name files of your machine; name a recipe by its path in the same "
            "repository, or by hf://owner/name@revision/path"
        ) from None
    beside = file.parent / entry
    return (beside, home) if beside.is_file() else fetch_file(home)


def read_recipe(file: Path, shown: object, where: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The recipe in a file that a registry file names, and the keys above it in the file.

    Raises:
        UsageError: no such file, or not a recipe; with its file and line.
    """
    if not file.exists():
        raise UsageError(f"{where}: {shown}: no such file; the path of a recipe is relative to the registry file")
    text = read_text(file)
    return recipe_in(parse(text, shown), text, shown)


def refuse_local(data: dict[str, Any], text: str, file: object) -> None:
    """Raise a UsageError if a registry file names plugins or local files, which a file from the Hub may not do.

    Args:
        data, text: the file's data, and its text.
        file: its path or address, for the message.
    """
    if "plugins" in data:
        raise UsageError(
            f"{file}:{line_of(text, ['plugins'])}: plugins: a registry on the Hub is data and may not import plugins; "
            "install them, and pass --plugin MODULE for those that you trust"
        )
    for name, entry in (data.get("models") or {}).items():
        for key in LOCAL:
            if key in entry and not is_address(entry[key]):
                raise UsageError(
                    f"{file}:{line_of(text, ['models', name, key])}: models.{name}.{key}: a registry on the Hub may "
                    "not name files of your machine; name a repository with its revision"
                )


def read_source(source: str | Path, *, allow_plugins: bool) -> Catalogue:
    """Read a registry file, or that of a Hub repository, `hf://owner/name[@revision][/path]`.

    Raises:
        ModelError: the repository cannot be read.
        UsageError: the file is not a valid registry file; with file, line and key.
    """
    file, address = find_file(source, NAME)
    return read(file, allow_plugins=allow_plugins and address is None, address=address)


def user_file() -> tuple[str | Path, bool] | None:
    """The user's registry file and whether the user named it: $SDESAMPLERS_REGISTRY, else that in the config folder."""
    named = os.environ.get("SDESAMPLERS_REGISTRY")
    if named:
        return named, True
    config = os.environ.get("XDG_CONFIG_HOME") or (os.environ.get("APPDATA") if os.name == "nt" else None)
    try:
        found = Path(config or Path.home() / ".config") / "sdesamplers" / "registry.yaml"
        if found.is_file():
            with found.open("rb"):
                return found, False
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: there is no home folder
        reason = getattr(error, "strerror", None) or error
        warn(f"your registry.yaml is ignored, since your configuration folder cannot be read: {reason}")
    return None


def load_catalogue(named: str | Path | None = None) -> Catalogue:
    """The shipped catalogue, overlaid with the user's file and then with `named`, a file or an address on the Hub."""
    catalogue = _shipped()
    user = user_file()
    if user is not None:
        catalogue = catalogue.overlay(read_source(user[0], allow_plugins=user[1]))
    if named is not None:
        catalogue = catalogue.overlay(read_source(named, allow_plugins=True))
    return catalogue


@cache
def _shipped() -> Catalogue:
    return read(SHIPPED, allow_plugins=False, check=False)
