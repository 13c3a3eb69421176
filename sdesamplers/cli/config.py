"""A command's options as a YAML file: --dump-config writes it, --config and `sdesamplers run` read it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import click
import yaml

from ..errors import UnknownNameError, UsageError
from ..registry.options import KEYWORDS, as_number
from ..registry.plain_yaml import FLOAT, INTEGER, parse, read_text
from ..registry.validation import is_left_out, kind_of, line_of
from ..version import __version__
from .conditions import resolve_conditions
from .config_paths import from_folder, option_from_folder
from .places import KEY, Places, placing

RENAMED = {
    "source": "model",
    "sources": "models",
    "option": "options",
    "spacing_option": "spacing_options",
    "noise_option": "noise_options",
}
"""Parameters with the keys of recipes in registry.yaml. Other keys are the options: `num_samples` for --num-samples."""
PAIRS = ("option", "spacing_option", "noise_option")
"""Options given as KEY=VALUE on the command line and as a mapping in the file."""
TYPED = {"token": "it is a secret", "allow_pickle": "it allows files to execute code"}
"""Options that must be typed, and why."""
REPLACED = {
    **dict.fromkeys(("steps", "nfe", "times", "sigmas"), ("steps", "nfe", "times", "sigmas")),
    **dict.fromkeys(("sampler", "samplers", "recipe"), ("sampler", "recipe", "option")),
    **dict.fromkeys(("prompt", "prompts"), ("prompt", "prompts")),
    "spacing": ("spacing", "spacing_option"),
    "noise": ("noise", "noise_option"),
}
"""Options on the command line, and those in the file that then do not apply, besides the option itself."""
COMMENTS = ("command", "description", "$schema")
"""Keys that are no options: the command that the file is for, and a recipe's description and schema."""
REQUIRES = "requires"
"""The key of a recipe's file for the packages whose plugins it needs."""


class Configured(click.Command):
    """A command with --config and --dump-config."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        file = click.Option(
            ["--config"],
            type=click.Path(),
            metavar="FILE",
            help="Read options from this YAML file; those on the command line take precedence.",
        )
        dump = click.Option(["--dump-config"], is_flag=True, help="Print the options as YAML for --config, and exit.")
        self.params += [file, dump]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, with the values in the file of --config as defaults of the options."""
        if ctx.resilient_parsing:
            return super().parse_args(ctx, args)
        typed = {name: v for name, v in self.make_parser(ctx).parse_args([*args])[0].items() if _is_given(v)}
        places = ctx.meta[KEY] = Places()
        read = read_config(self, ctx, Path(typed["config"]), places) if "config" in typed else {}
        for name in typed:
            for other in REPLACED.get(name, ()):
                read.pop(other, None)
        read = {name: value for name, value in read.items() if name in PAIRS or name not in typed}
        refuse_two_grids(read, places)
        ctx.default_map = read
        try:
            rest = super().parse_args(ctx, args)
        except click.MissingParameter as error:
            if "config" not in typed or error.param is None:
                raise
            raise UsageError(without(self, error.param, typed["config"])) from None
        for name in PAIRS:  # a later value of a key replaces an earlier one
            if name in typed and name in read:
                typed[name] = ctx.params[name] = (*read[name], *ctx.params[name])
        ctx.params.pop("config")
        if ctx.params.pop("dump_config"):
            click.echo(dumped(self, ctx, {**read, **typed}), nl=False)
            ctx.exit()
        return rest

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error about a value in the file of --config has its line."""
        with placing(ctx.meta.get(KEY) or Places()):
            return super().invoke(ctx)


def refuse_two_grids(read: Mapping[str, Any], places: Places) -> None:
    """Raise a UsageError if a file has several of steps, nfe, times and sigmas."""
    first, *others = [name for name in ("steps", "nfe", "times", "sigmas") if name in read] or [""]
    if others:
        raise UsageError(f"{places.names[others[0]]}: contradicts {first}; keep one of them")


def without(command: click.Command, param: click.Parameter, file: str) -> str:
    """The message about a file without a parameter that the command needs."""
    key = key_of(str(param.name), param.opts if isinstance(param, click.Option) else ())
    example = EXAMPLES.get(key, f"{key}: ...")
    given = f"sdesamplers run {file} {param.make_metavar(click.Context(command))}"
    return f"{file}: {key} is missing: add a line such as `{example}`, or type it: {given}"


EXAMPLES = {
    "model": "model: fashion-mnist",
    "models": "models: [fashion-mnist]",
    "samplers": "samplers: [heun, quality]",
    "data": "data: fashion-mnist-test",
    "nfe": "nfe: 10",
}
"""A line for each key that a command needs."""


def _is_given(value: Any) -> bool:
    """True for a value of the parser; versions of click differ in what stands for a missing one."""
    return isinstance(value, str | bool | list | tuple) and value not in ((), [])


def key_of(name: str, options: Collection[str] = ()) -> str:
    """The key of a parameter in the file."""
    longest = max(options, key=len, default=name).split("/")[0].lstrip("-").replace("-", "_")
    return RENAMED.get(name, longest if options else name)


def keys_of(command: click.Command) -> dict[str, click.Parameter]:
    """The keys that a command's file may have, with their parameters."""
    own = ("config", "dump_config", "help")
    return {
        key_of(p.name or "", p.opts if isinstance(p, click.Option) else ()): p
        for p in command.params
        if p.name not in own
    }


def read_mapping(file: Path) -> tuple[dict[str, Any], str]:
    """The content of a configuration file, and its text.

    Raises:
        UsageError: the file cannot be read, or is not a YAML mapping.
    """
    text = read_text(file)
    data = parse(text, file)
    if not isinstance(data, dict):
        raise UsageError(
            f"{file}: a configuration is a mapping of options, such as `steps: 20`; this one is {kind_of(data)}"
        )
    return {str(key): value for key, value in data.items()}, text


def read_config(command: click.Command, ctx: click.Context, file: Path, places: Places) -> dict[str, Any]:
    """The values of a command's parameters in a file, as they would be typed; `places` gets where each is.

    Raises:
        UsageError: the file cannot be read, is for another command, or has an unknown key or an invalid value; with
            file, line and key.
    """
    data, content = read_mapping(file)
    known = keys_of(command)
    if data.get("command", command.name) != command.name:
        raise UsageError(f"{file}: a configuration of `sdesamplers {data['command']}`, not of {command.name}")
    places.file = str(file)
    values = {}
    for written, value in data.items():
        key = written.replace("-", "_")
        where = f"{file}:{line_of(content, [written])}: {written}"
        if key in COMMENTS:
            continue
        if value is None:
            if is_left_out(content, written):
                raise UsageError(f"{where}: has no value; remove the line for the default, or write null")
            continue
        if key == REQUIRES:
            check_plugins(value, where)
            continue
        if key not in known:
            opening = f"{where}: `sdesamplers {command.name}` has no such option"
            raise UnknownNameError("option", written, known, opening=opening)
        param = known[key]
        if param.name in values:
            raise UsageError(f"{where}: is given twice, with a hyphen and with an underscore")
        if param.name in TYPED:
            raise UsageError(f"{where}: must be typed on the command line, since {TYPED[param.name]}")
        found = values[str(param.name)] = read_value(param, value, where, file.parent)
        places.names[str(param.name)] = where
        if param.name in PAIRS:
            keys = (text.partition("=")[0] for text in found)
            inner = [(key, line_of(content, [written, key])) for key in keys]
            places.options |= {
                text: f"{file}:{line}: {written}.{key}" for text, (key, line) in zip(found, inner, strict=True)
            }
        texts = found if isinstance(found, list) else [str(found)]
        places.values[where] = [
            part for text in texts for each in (text, *text.split(",")) for part in (each, each.strip())
        ]
        try:
            param.type_cast_value(ctx, found)
        except click.BadParameter as error:
            raise UsageError(f"{where}: {error.message}") from None
    return values


def read_value(param: click.Parameter, value: Any, where: str, folder: Path) -> Any:
    """A value in a file in this folder as it would be typed in the present folder; see `as_typed`."""
    found, name = as_typed(param, value, where), str(param.name)
    if name in PAIRS:
        return [option_in(folder, text) for text in found]
    if isinstance(found, list):
        return [from_folder(folder, name, text) for text in found]
    return from_folder(folder, name, found) if isinstance(found, str) else found


def option_in(folder: Path, text: str) -> str:
    """KEY=VALUE with the path of a file relative to a folder as one that is relative to the present folder."""
    key, equals, value = text.partition("=")
    return f"{key}{equals}{option_from_folder(folder, value)}"


def check_plugins(needed: Any, where: str) -> None:
    """Raise a UsageError if a plugin that a recipe's file requires is not installed."""
    from ..registry.recipe_data import missing
    from ..registry.registry import default_registry

    if not isinstance(needed, Mapping):
        raise UsageError(f"{where}: must be a mapping of packages to versions")
    if reason := missing(
        {str(package): str(version) for package, version in needed.items()}, default_registry().plugins
    ):
        raise UsageError(f"{where}: {reason}")


def as_typed(param: click.Parameter, value: Any, where: str) -> Any:
    """A value in the file as the texts that would be typed; True or False for a flag.

    Raises:
        UsageError: the value has another form.
    """
    if param.name in PAIRS:
        if not isinstance(value, Mapping):
            raise UsageError(f"{where}: must be a mapping, such as `{{eta: 0.5}}`")
        return [f"{key}={_text(part)}" for key, part in value.items()]
    if getattr(param, "is_flag", False):
        if not isinstance(value, bool):
            raise UsageError(f"{where}: must be true or false, not {value!r}")
        return value
    parts = value if isinstance(value, list) else [value]
    if not all(isinstance(part, str | int | float) and not isinstance(part, bool) for part in parts):
        raise UsageError(f"{where}: must be text, a number or a list of these, not {value!r}")
    texts = [str(part) for part in parts]
    repeated = getattr(param, "multiple", False) or param.nargs != 1
    return texts if repeated else ",".join(texts)


def _text(value: Any) -> str:
    """A value of a sampler's option as it would be typed."""
    if isinstance(value, str):
        return value
    return "none" if value is None else json.dumps(value)


def dumped(command: click.Command, ctx: click.Context, given: Mapping[str, Any]) -> str:
    """All options that have a value, as YAML; `given` are the texts of those that are not defaults."""
    params = dict(ctx.params)
    if "prompt" in params:
        resolve_conditions(params)  # several prompts set the number of samples
    data: dict[str, Any] = {"command": command.name}
    for key, param in keys_of(command).items():
        name = str(param.name)
        default = params.get(name) if name == "num_samples" else param.default  # not get_default, which reads the file
        value = given.get(name, default if isinstance(default, str | int | float) else None)
        if name in TYPED or (name == "sampler" and "recipe" in given) or value in (None, (), []):
            continue
        if value is False and default is not True:  # a flag that was not given
            continue
        if name in PAIRS:
            value = {key.strip(): _as_data(part) for key, _, part in (text.partition("=") for text in value)}
        elif isinstance(value, str) and not isinstance(param.type, click.types.StringParamType | click.Path):
            value = _as_data(value)
        data[key] = list(value) if isinstance(value, tuple) else value
    heading = f"# sdesamplers {__version__}; repeat it with: sdesamplers run FILE\n"
    return heading + yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True)


def _as_data(text: str) -> Any:
    """A typed value as a number or a constant if it has the same text, so that nothing changes when it is read."""
    value = KEYWORDS[text] if text in KEYWORDS else as_number(text)
    return value if _text(value) == text else text


class Dumper(yaml.SafeDumper):
    """Writes YAML whose values are the same in YAML 1.1 and in 1.2, in which 1e3 is a number."""


for tag, pattern in (("int", INTEGER), ("float", FLOAT)):  # the class gets its own copy of the resolvers
    Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", pattern, list("-+0123456789."))
