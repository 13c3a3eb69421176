"""Resolving names to samplers with their options, grid and noise."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ..errors import ModelError, UnknownNameError, UsageError, nearest
from .catalogue import SHIPPED, Catalogue
from .discovery import Plugin
from .hooks import GROUP
from .options import Option, check_options, check_written
from .peers import Peers
from .plugin import NoiseSource, Sampler, Spacing
from .recipe_data import GRIDS, missing
from .shelf import Shelf, T


@dataclass(frozen=True)
class Preset:
    """What a name refers to: a sampler with the settings to run it with.

    A setting of None is left to the call or to defaults. A `Recipe` has the final settings of a call.
    """

    sampler: Sampler
    options: Mapping[str, Any] = field(default_factory=dict)
    spacing: str | None = None
    spacing_options: Mapping[str, Any] = field(default_factory=dict)
    coordinates: str | None = None
    steps: int | None = None
    noise: str | None = None
    noise_options: Mapping[str, Any] = field(default_factory=dict)
    final: str | None = None
    description: str = ""
    times: tuple[float, ...] | None = None
    sigmas: tuple[float, ...] | None = None
    start_time: float | None = None

    @property
    def grid(self) -> dict[str, Any]:
        """The one of steps, times and sigmas that this preset sets; {} if it leaves the grid to the call."""
        return {name: value for name in GRIDS if (value := getattr(self, name)) is not None}

    def completing(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of `given`, with those of this preset for the settings that it does not have.

        Args:
            given: settings by the names of this class's attributes; None, or nothing, if one is not set.
        """
        grid = {name: given[name] for name in GRIDS if given.get(name) is not None}
        own_grid = "times" in grid or "sigmas" in grid
        spacing, noise = given.get("spacing") or (None if own_grid else self.spacing), given.get("noise") or self.noise
        spacing_options = self.spacing_options if spacing == self.spacing else {}
        noise_options = self.noise_options if noise == self.noise else {}
        start_time = given.get("start_time")
        return {
            "options": {**self.options, **(given.get("options") or {})},
            **dict.fromkeys(GRIDS),
            **(grid or self.grid),
            "spacing": spacing,
            "spacing_options": {**spacing_options, **(given.get("spacing_options") or {})},
            "coordinates": given.get("coordinates") or self.coordinates,
            "noise": noise,
            "noise_options": {**noise_options, **(given.get("noise_options") or {})},
            "final": given.get("final") or self.final,
            "start_time": self.start_time if start_time is None and not own_grid else start_time,
        }


def chosen_entry(entry: str | Mapping[str, Any], key: str, shelf: Shelf[T], where: str) -> tuple[T, dict[str, Any]]:
    """Return the spacing or noise source that an alias refers to, and its checked options."""
    name, options = (entry, {}) if isinstance(entry, str) else (entry[key], entry.get("options", {}))
    if name not in shelf:
        raise UnknownNameError(f"{shelf.kind} of {where}:", name, shelf)
    item: Any = shelf[name]
    return item, check_options(options, item.options, where)


def is_on_disk(name: str) -> bool:
    """True if a file or folder has this name."""
    try:
        return bool(name) and Path(name).exists()
    except (OSError, ValueError):  # too long, or not a path
        return False


class Names:
    """Resolves the names of samplers, spacings and noise sources: registered, in the catalogue, or of other libraries.

    Args:
        catalogue: recipes, aliases and other libraries' names.
        samplers, spacings, noises: the registered items.
        plugins: the plugins that were found, for the hint that some are broken.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        samplers: Shelf[Sampler],
        spacings: Shelf[Spacing],
        noises: Shelf[NoiseSource],
        plugins: Sequence[Plugin],
    ) -> None:
        self.catalogue, self.samplers, self.spacings, self.noises = catalogue, samplers, spacings, noises
        self.plugins = plugins
        self.peers = Peers(catalogue)
        self._presets: dict[tuple[str, str], Preset] = {}
        self._open: list[str] = []  # the recipes that are being built, each named by the one before it

    def clear_cache(self) -> None:
        """Clear the cache of built recipes, after a shelf has changed."""
        self._presets.clear()

    def resolve(self, name: str) -> Preset:
        """Resolve a name to a sampler and its settings.

        Tried in this order: a registered sampler; a recipe, or a recipe named `head{option}` with the option's value
        in place of the braces; an alias; a name in another library (a peer), in the order of `peers` in the registry
        file, or `peer:name` for a particular peer; and such a name followed by a space and a spacing's name
        ("DPM++ 2M Karras").

        Raises:
            ModelError: a recipe whose file on the Hub could not be read when its registry file was.
            UnknownNameError: no such name; the message suggests similar names.
            UsageError: a name in another library without an equivalent here; the message has the reason.
        """
        aliases = self.catalogue.aliases
        chain: list[str] = []
        own = self.samplers, self.catalogue.recipes, self.catalogue.unread
        while name in aliases and not any(name in names for names in own):
            if name in chain:
                where = self.catalogue.where("aliases", name)
                raise UsageError(f"{where}: the alias refers to itself ({' -> '.join([*chain, name])})")
            chain.append(name)
            name = self._target("aliases", name, aliases[name])
        found = self._own(name) or self._peers_sampler(name) or self._on_grid(name)
        if found is not None:
            return found
        kind = f"sampler of {self.catalogue.where('aliases', chain[-1])}:" if chain else "sampler"
        on_disk = f"; for the file or folder of this name pass './{name}'" if is_on_disk(name) else ""
        raise UnknownNameError(kind, name, self.candidates(name), on_disk or self.hint())

    def sampler_names(self) -> list[str]:
        """Every name that `resolve` knows, ours first; for a recipe `head{option}` one name per value of the option."""
        recipes: list[str] = []
        for pattern in self.catalogue.recipes:
            head, brace, _ = pattern.partition("{")
            recipes += [head + str(choice) for choice in self._choices(pattern)] if brace else [pattern]
        return [*self.samplers, *recipes, *self.catalogue.aliases, *self.peers.names("samplers")]

    def candidates(self, name: str) -> list[str]:
        """Candidates for the suggestion after a mistyped name: a similar sampler on similar grids, or every name."""
        return self.composites(name) or self._known_names(name)

    def composites(self, name: str) -> list[str]:
        """`SAMPLER GRID` labels similar to a mistyped one; grids are spelled as in the library that has the sampler."""
        words, peers = name.split(" "), self.catalogue.peers
        own = self.peers.called(name.partition(":")[0])
        names = self._known_names(name)
        for cut in range(len(words) - 1, 0, -1):
            for label in nearest(" ".join(words[:cut]), names, 1):
                homes = [kinds for peer, kinds in peers.items() if peer == own or label in kinds.get("samplers", {})]
                grids = [grid for kinds in homes for grid in kinds.get("spacings", {})]
                found = nearest(" ".join(words[cut:]), [*grids, *self.grid_names()])
                if found:
                    return [f"{label} {grid}" for grid in found]
        return []

    def hint(self) -> str:
        """The end of the message about an unknown name: which command shows more."""
        broken = [p for p in self.plugins if p.error]
        if not broken:
            return "; see `sdesamplers list`"
        count = "1 plugin is" if len(broken) == 1 else f"{len(broken)} plugins are"
        return f" ({count} broken: see `sdesamplers doctor`)"

    def grid_names(self) -> list[str]:
        """Every name that `grid` knows, ours first."""
        return [*self.spacings, *self.catalogue.spacing_aliases, *self.peers.names("spacings")]

    def grid(self, name: str) -> tuple[Spacing, dict[str, Any]]:
        """Resolve the name of a registered spacing, an alias or a name in another library to a spacing and its options.

        Raises:
            UnknownNameError: no such name; the message suggests similar names.
            UsageError: a name in another library without an equivalent here; the message has the reason.
        """
        found = self._grid(name)
        if found is None:
            raise UnknownNameError("spacing", name, self.grid_names(), self.hint())
        return found

    def noise(self, name: str) -> tuple[NoiseSource, dict[str, Any]]:
        """Resolve the name of a registered noise source or an alias to a noise source and its options.

        Raises:
            UnknownNameError: no such name; the message suggests similar names.
        """
        found = self._noise(name)
        if found is None:
            known = [*self.noises, *self.catalogue.noise_aliases]
            there = ", ".join(repr(source) for source in self.noises)
            raise UnknownNameError("noise source", name, known, f" (known: {there})")
        return found

    def _own(self, name: str) -> Preset | None:
        """Resolve the name of a registered sampler or a recipe, which may contain an option's value."""
        if name in self.samplers:
            return Preset(self.samplers[name])
        recipes = self.catalogue.recipes
        if name in recipes:
            return self._built("recipes", name, recipes[name])
        if name in self.catalogue.unread:
            raise ModelError(self.catalogue.unread[name])
        for pattern, entry in recipes.items():
            head, brace, rest = pattern.partition("{")
            if brace and name.startswith(head) and len(name) > len(head):
                text, key, owner = name.removeprefix(head), rest.rstrip("}"), head.rstrip(":")
                option, choices = self._option(pattern), [str(choice) for choice in self._choices(pattern)]
                if choices and text not in choices:
                    listing = f" (known: {', '.join(choices)})"
                    raise UnknownNameError(key, text, choices, listing, opening=f"unknown {key} {text!r} of {owner}")
                value = text if option is None else option.parse(text, owner)
                filled = {**entry.get("options", {}), key: value}
                return self._built("recipes", pattern, {**entry, "options": filled}, key=name)
        return None

    def _peers_sampler(self, name: str) -> Preset | None:
        """Resolve the name of a sampler in another library; the first peer that has the name is used."""
        for peer, own, entry in self.peers.entries("samplers", name):
            names = self.catalogue.peers[peer]["samplers"]
            if isinstance(entry, str) and isinstance(names.get(entry), Mapping):  # another name of the same peer
                own, entry = entry, names[entry]
            if isinstance(entry, str):
                found = self._own(self._target(f"peers.{peer}.samplers", own, self.catalogue.aliases.get(entry, entry)))
                if found is None:
                    raise UnknownNameError(
                        f"sampler of {self.peers.where(peer, 'samplers', own)}:", entry, self.samplers
                    )
                return found
            return self._built(f"peers.{peer}.samplers", own, entry)
        return None

    def _on_grid(self, name: str) -> Preset | None:
        """Resolve `SAMPLER GRID`, as A1111 labels them: a sampler on another grid. The longest sampler name is used."""
        words = name.split(" ")
        for cut in range(len(words) - 1, 0, -1):
            label, tail = " ".join(words[:cut]), " ".join(words[cut:])
            head = self.catalogue.aliases.get(label, label)
            if tail not in self.grid_names():
                continue
            found = self._own(head) or self._peers_sampler(head)
            if found is not None:
                spacing, options = self.grid(tail)
                made = replace(found, spacing=spacing.name, spacing_options=options)
                return replace(made, description=self._describe_on_grid(label, tail, found, made))
        return None

    def _describe_on_grid(self, label: str, tail: str, before: Preset, after: Preset) -> str:
        """The description of `SAMPLER GRID`. A recipe's description mentions its grid, so it is dropped on another."""
        moved = (before.spacing, before.spacing_options) != (after.spacing, after.spacing_options)
        of_recipes = {recipe.get("description") for recipe in self.catalogue.recipes.values()}
        note = "" if moved and before.description in of_recipes else before.description
        place = f", in place of {before.spacing}" if before.spacing not in (None, after.spacing) else ""
        return f"{label} on the grid {tail}{place}" + (f"; {note}" if note else "")

    def _known_names(self, name: str) -> list[str]:
        """Every sampler name, or for `peer:name` the sampler names of the peer."""
        peer, colon, _ = name.partition(":")
        own = self.peers.called(peer) if colon else None
        samplers = {} if own is None else self.catalogue.peers[own].get("samplers", {})
        return self.sampler_names() if own is None else [f"{own}:{known}" for known in samplers]

    def _choices(self, pattern: str) -> tuple[Any, ...]:
        """The possible values of the option in a recipe's name; () if they cannot be listed."""
        option = self._option(pattern)
        return typing.get_args(option.type) if option is not None and typing.get_origin(option.type) is Literal else ()

    def _option(self, pattern: str) -> Option | None:
        """The option in the braces of a recipe's name."""
        wanted = self._target("recipes", pattern, self.catalogue.recipes[pattern]["sampler"])
        key = pattern.partition("{")[2].rstrip("}")
        return self.samplers[wanted].options.get(key) if wanted in self.samplers else None

    def _target(self, section: str, name: str, target: str) -> str:
        """The sampler that a catalogue entry refers to; shipped entries refer to ours even if the name is ambiguous."""
        ours = f"{GROUP}:{target}"
        return ours if self.catalogue.origins.get((section, name)) == SHIPPED and ours in self.samplers else target

    def _built(self, section: str, name: str, entry: Mapping[str, Any], key: str | None = None) -> Preset:
        """The preset of a recipe, checked and cached."""
        place = section, key or name
        if place not in self._presets:
            meant = {**entry, "sampler": self._target(section, name, entry["sampler"])}
            self._presets[place] = self._build(meant, section, name)
        return self._presets[place]

    def _build(self, recipe: Mapping[str, Any], section: str, name: str) -> Preset:
        """The preset of a recipe; messages have the file, the line and the key.

        Raises:
            UnknownNameError: an unknown sampler, spacing, noise source or option.
            UsageError: an invalid option, a required plugin that is missing, or a recipe that refers to itself.
        """

        def where(*keys: str) -> str:
            return self.catalogue.where(section, name, *keys)

        entry: dict[str, Any] = {
            key: tuple(value) if key in ("times", "sigmas") else value for key, value in recipe.items()
        }
        wanted, grid, noise = entry.pop("sampler"), entry.get("spacing"), entry.get("noise")
        if reason := missing(entry.pop("requires", {}), self.plugins):
            raise UsageError(f"{where('requires')}: {reason}")
        base = self._base(wanted, name, where)
        listed = next((key for key in ("times", "sigmas") if key in base.grid), None)
        if grid is not None and listed and not any(key in entry for key in GRIDS):
            raise UsageError(f"{where('spacing')}: contradicts {listed} of {wanted!r}; set steps as well, or remove it")
        sampler = base.sampler
        entry["options"] = check_written(
            entry.get("options", {}), sampler.options, f"sampler {sampler.name!r}", lambda key: where("options", key)
        )
        if grid is not None:
            found = self._grid(grid)
            if found is None:
                raise UnknownNameError(f"spacing of {where('spacing')}:", grid, self.spacings)
            entry["spacing"], options = found[0].name, entry.get("spacing_options", {})
            entry["spacing_options"] = found[1] | check_written(
                options, found[0].options, f"spacing {found[0].name!r}", lambda key: where("spacing_options", key)
            )
        if noise is not None:
            source = self._noise(noise)
            if source is None:
                raise UnknownNameError(f"noise source of {where('noise')}:", noise, self.noises)
            entry["noise"], options = source[0].name, entry.get("noise_options", {})
            entry["noise_options"] = source[1] | check_written(
                options, source[0].options, f"noise {source[0].name!r}", lambda key: where("noise_options", key)
            )
        return replace(base, **base.completing(entry), description=entry.get("description", ""))

    def _base(self, wanted: str, name: str, where: Callable[..., str]) -> Preset:
        """What the sampler of a recipe refers to: a sampler, or another name with settings of its own."""
        if wanted in self.samplers:
            return Preset(self.samplers[wanted])
        if name in self._open:
            raise UsageError(f"{where('sampler')}: the recipe refers to itself ({' -> '.join([*self._open, name])})")
        self._open.append(name)
        try:
            return self.resolve(wanted)
        except UnknownNameError as unknown:
            if unknown.name != wanted:  # the mistake is in the other recipe
                raise
            raise UnknownNameError(f"sampler of {where('sampler')}:", wanted, self.candidates(wanted)) from None
        finally:
            self._open.pop()

    def _grid(self, name: str) -> tuple[Spacing, dict[str, Any]] | None:
        if name in self.spacings:
            return self.spacings[name], {}
        if name in self.catalogue.spacing_aliases:
            entry = self.catalogue.spacing_aliases[name]
            return chosen_entry(entry, "spacing", self.spacings, self.catalogue.where("spacing_aliases", name))
        for peer, own, entry in self.peers.entries("spacings", name):
            return chosen_entry(entry, "spacing", self.spacings, self.peers.where(peer, "spacings", own))
        return None

    def _noise(self, name: str) -> tuple[NoiseSource, dict[str, Any]] | None:
        if name in self.noises:
            return self.noises[name], {}
        if name in self.catalogue.noise_aliases:
            entry = self.catalogue.noise_aliases[name]
            return chosen_entry(entry, "noise", self.noises, self.catalogue.where("noise_aliases", name))
        return None
