"""`Recipe`: everything that determines a run except the model and the seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

from ..checks import name_of, one_of_types, warn
from ..errors import UnknownNameError, UsageError
from ..html import facts_table, joined
from ..hub.address import Address
from ..hub.cards import README, place_of_card
from ..hub.download import find_file
from ..hub.upload import Destination
from ..io.files import make_folder, write
from ..pretrained.hub_files import RECIPE
from ..public import public
from ..registry.names import Preset
from ..registry.plugin import NoiseSource, Registered, Spacing
from ..registry.registry import default_registry
from ..registry.shelf import Shelf
from .recipe_card import TITLE, make_card
from .recipe_file import YAML, as_text, check_suffix, from_file


@public
@dataclass(frozen=True)
class Recipe:
    """Everything that determines a run except the model and the seed.

    The recipe of a run (`result.recipe`) is checked and complete. One that you write may have as little as a sampler
    and a number of steps; what it omits has its default, and it is checked when it runs.

    `sample`, `compare` and the other functions that take a sampler's name accept a recipe in its place, and repeat it;
    so they do with the path of its file (`save`, `load`) and with its address on the Hub (`push_to_hub`).

    Attributes:
        sampler, options: the sampler's name and its options, including defaults.
        steps: number of grid intervals; None for an adaptive run or an explicit grid.
        spacing, spacing_options: the time grid.
        times, sigmas: an explicit grid instead.
        coordinates, noise, noise_options, final: as in `sample`.
        start_time: native time of a partly noised input; None for a run that starts from the prior.
        own: the unregistered sampler, spacing and noise source, if any, by the keys "sampler", "spacing" and "noise".
        description: what it is for; it has no influence on a run.
        source: the address of the file that it was read from, with the commit, if that is on the Hub.

    Example:
        >>> recipe = sds.sample("fashion-mnist", "dpmpp-2m", steps=8, spacing="karras").recipe
        >>> recipe.save("dpm8.yaml")
        >>> sds.sample("fashion-mnist", "dpm8.yaml", num_samples=4)
        >>> sds.sample("fashion-mnist", sds.Recipe("ddim", steps=20, options={"eta": 0.5}))
    """

    sampler: str
    options: dict[str, Any] = field(default_factory=dict)
    steps: int | None = None
    spacing: str | None = None
    spacing_options: dict[str, Any] = field(default_factory=dict)
    times: tuple[float, ...] | None = None
    sigmas: tuple[float, ...] | None = None
    coordinates: str = ""
    noise: str = ""
    final: str = ""
    start_time: float | None = None
    noise_options: dict[str, Any] = field(default_factory=dict)
    own: Mapping[str, Registered] = field(default_factory=dict, repr=False, compare=False)
    description: str = field(default="", compare=False)
    source: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Check the types; lists of times and sigmas become tuples.

        Raises:
            UsageError: a field of another type, or several of times, sigmas and spacing.
        """
        name_of("sampler", self.sampler)
        for name in ("options", "spacing_options", "noise_options"):
            one_of_types(name, getattr(self, name), Mapping, "a dictionary of options")
        for name in ("times", "sigmas"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))
        grids = [name for name in ("times", "sigmas", "spacing") if getattr(self, name) is not None]
        if len(grids) > 1:
            raise UsageError(f"a recipe has one grid, and this one has {' and '.join(grids)}; keep one of them")

    def __repr__(self) -> str:
        return f"Recipe({', '.join(f'{name}={value!r}' for name, value in self.as_dict().items())})"

    def _repr_html_(self) -> str:
        """For notebooks: a table of the fields that apply."""
        facts = {k: joined(v) if isinstance(v, dict) else v for k, v in self.as_dict().items()}
        return facts_table("Recipe", facts)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON and metadata; fields that do not apply are omitted."""
        return {k: v for k, v in vars(self).items() if k != "own" and v not in (None, {}, (), "")}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """The recipe of a dictionary from `as_dict`, which may have been stored as JSON.

        Raises:
            UsageError: the dictionary has no sampler, or a field that recipes do not have.
        """
        known = [entry.name for entry in fields(cls) if entry.name != "own"]
        for key in data:
            if key not in known:
                raise UnknownNameError("field of a recipe", str(key), known, f" (known: {', '.join(known)})")
        if not isinstance(data.get("sampler"), str):
            raise UsageError(f"a recipe's sampler must be a name, not {data.get('sampler')!r}")
        return cls(**{key: value for key, value in data.items() if value is not None})

    def save(self, path: str | Path) -> Path:
        """Write the recipe to a file, as YAML (.yaml, .yml) or JSON (.json); return the path.

        The file is data: the names of the sampler, the spacing and the noise source, their options, and the packages
        that provide them if they are other libraries' plugins. Its first line and its key `$schema` let editors check
        it and complete names. The model, the seed and the number of samples are not part of a recipe.

        Raises:
            UsageError: another ending, or a sampler, spacing or noise source that is not registered.
            SdesamplersError: the file could not be written.
        """
        file = Path(one_of_types("path", path, (str, Path), "a path"))
        text = self.as_text(check_suffix(file))
        make_folder(file.parent)
        return write(file, text)

    def as_text(self, suffix: str = ".yaml") -> str:
        """The content of the recipe's file; `suffix` is .yaml or .json.

        Raises:
            UsageError: a sampler, spacing or noise source that is not registered.
        """
        for kind, item in self.own.items():
            raise UsageError(
                f"the {item.kind} {item.name!r} of this recipe is not registered, and a file can only name its {kind}; "
                "register it, in a plugin if others are to use the file"
            )
        items: list[Registered] = [default_registry().resolve(self.sampler).sampler]
        items += [] if self.spacing is None else [chosen_grid(self.spacing)[0]]
        items += [chosen_noise(self.noise)[0]] if self.noise else []
        if own := [f"{item.kind} {item.name!r}" for item in items if item.plugin == "local"]:
            warn(
                f"only this program has registered the {' and the '.join(own)} of this recipe; a program that reads "
                "the recipe must register the same before, by sds.register or --plugin FILE.py"
            )
        return as_text(self.as_dict(), items, suffix)

    @classmethod
    def load(cls, source: str | Path, *, token: str | bool | None = None, local_files_only: bool = False) -> Recipe:
        """Read a recipe from a file or from the Hub; nothing in it is run.

        Args:
            source: a file that `save` has written or that you have, in YAML or JSON; the manifest.json of a job; or
                "hf://owner/name/path.yaml", with "@revision" after the name for a branch, tag or commit. Without a path
                it is recipe.yaml. Settings that the file omits have their defaults.
            token: of the Hub; that of the login by default.
            local_files_only: do not connect to the Hub.

        Raises:
            ModelError: the repository cannot be read.
            UnknownNameError: a key that recipes do not have, or a name that no installed plugin has; the message has
                the line and similar names, or the plugin that the file requires.
            UsageError: no such file, or not a recipe; with file and line.
        """
        one_of_types("source", source, (str, Path), "a path or an address on the Hub")
        return read_recipe(*find_file(source, RECIPE, token=token, local_files_only=local_files_only))

    def push_to_hub(
        self,
        repo: str,
        path: str = RECIPE,
        *,
        revision: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Upload the recipe to a Hub repository, in one commit.

        Anyone can then use it as `sampler="hf://owner/name/path"`; recipe.yaml as "hf://owner/name". A card, README.md,
        describes the repository's recipes, unless the repository has another README.md, which is left as it is.

        Args:
            repo: "owner/name"; created if it does not exist.
            path: of the file in the repository; it ends in .yaml, .yml or .json.
            revision: the branch, "main" by default; created if it does not exist.
            private: make a new repository private, or public; the owner's default if None.
            token: of the Hub; that of the login by default.
            commit_message: of the commit.
            create_pr: propose the file in a pull request, for a repository that you may not write to.

        Returns:
            The address of the commit, or of the pull request.

        Raises:
            ModelError: no connection or no permission; in one line.
            UsageError: `repo` is not an id, `path` is not one of a recipe, or the sampler, the spacing or the noise
                source is not registered.

        Example:
            >>> recipe.push_to_hub("owner/recipes", "dpm8.yaml")
            >>> sds.sample("fashion-mnist", "hf://owner/recipes/dpm8.yaml")
        """
        to = Destination(repo, revision, token)
        address = Address.parse(f"{to.source}/{path}")
        text = self.as_text(check_suffix(Path(path)))
        if not create_pr:
            to.create(private)
        names = to.names()
        files = {address.path: text.encode()}
        if place_of_card(to, names, TITLE, "") == README:
            there = {name: recipe.as_dict() for name, recipe in recipes_on(to, names).items()}
            files[README] = make_card({**there, address.path: self.as_dict()}, to.address).encode()
        return to.commit(files, commit_message or f"Add the recipe {address.path}", create_pr=create_pr)

    def completed_by(self, preset: Preset) -> Recipe:
        """This recipe with the settings of the name that its sampler refers to, for those that it does not have.

        A recipe that a run has recorded has all settings; one that somebody wrote may be as short as a sampler's label
        of another library and a number of steps.
        """
        return replace(self, **preset.completing(vars(self)))


def read_recipe(file: Path, address: Address | None = None) -> Recipe:
    """The recipe in a local file, which may be a copy of the one at an address; see `Recipe.load`."""
    return replace(Recipe.from_dict(from_file(file, address)), source=None if address is None else str(address))


def recipes_on(to: Destination, names: Sequence[str]) -> dict[str, Recipe]:
    """The recipes among the files of a repository's branch, by path; other files are ignored."""
    found = {}
    for name in names:
        if name.lower().endswith(YAML):
            with suppress(UsageError):  # another kind of file, or of plugins that are not installed here
                found[name] = Recipe.load(str(to.address.inside(name)), token=to.token)
    return found


def chosen_grid(spacing: str | Spacing) -> tuple[Spacing, dict[str, Any]]:
    """A spacing and the options that its name implies."""
    if isinstance(spacing, Spacing):
        return spacing, {}
    return default_registry().grid(name_of("spacing", spacing, "a Spacing"))


def chosen_noise(noise: str | NoiseSource) -> tuple[NoiseSource, dict[str, Any]]:
    """A noise source and the options that its name implies."""
    if isinstance(noise, NoiseSource):
        return noise, {}
    return default_registry().noise(name_of("noise", noise, "a NoiseSource"))


def registered_name(item: Registered) -> str | None:
    """The name of a registered object: `dist:name` if another object has its plain name; None if not registered."""
    registry = default_registry()
    shelves: dict[str, Shelf[Any]] = {
        "sampler": registry.samplers,
        "spacing": registry.spacings,
        "noise source": registry.noises,
    }
    return shelves[item.kind].name_of(item)


def spacing_of(recipe: Recipe) -> Spacing:
    """The spacing of a recipe."""
    return chosen_grid(cast("Spacing | str", recipe.own.get("spacing") or recipe.spacing))[0]


def noise_of(recipe: Recipe) -> NoiseSource:
    """The noise source of a recipe."""
    return chosen_noise(cast("NoiseSource | str", recipe.own.get("noise") or recipe.noise))[0]
