"""The files of a new plugin's package."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template

from ..errors import UsageError
from ..io.files import file_errors
from ..version import __version__
from .naming import Part, PluginName

PARTS: Mapping[Part, tuple[str, str]] = {
    "sampler": ("sampler", "sdesamplers sample fashion-mnist --sampler {item} --steps 10"),
    "spacing": ("spacing", "sdesamplers sample fashion-mnist --sampler heun --spacing {item} --steps 10"),
    "noise": ("noise source", "sdesamplers sample fashion-mnist --sampler ddpm --noise {item} --steps 50"),
    "process": ("process", "sdesamplers check {item}"),
    "model": ("model", "sdesamplers sample {item} --steps 10 --format npy"),
}
"""Part -> (what it is called, a command that uses it)."""


def new_plugin(name: PluginName, parts: Sequence[Part], parent: Path) -> Path:
    """Write the package of a new plugin; it passes ruff, mypy --strict and its own tests as it is.

    All files are written to a temporary folder, which is then renamed, so that there is never a part of a package.

    Args:
        name: its name.
        parts: what it contains, one of each.
        parent: the folder in which its folder is created.

    Returns:
        The folder.

    Raises:
        UsageError: the folder exists already, or `parent` does not.
        SdesamplersError: the files cannot be written.
    """
    folder = parent / name.distribution
    if not parent.is_dir():
        raise UsageError(f"there is no folder {parent}")
    if os.path.lexists(folder):
        raise UsageError(f"{folder} exists already; choose another name, or remove it")
    with file_errors(folder):
        temporary = Path(tempfile.mkdtemp(prefix=f".{name.distribution}-", dir=parent))
        try:
            for path, text in contents(name, parts).items():
                file = temporary / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")
            temporary.chmod(0o777 & ~_umask())  # mkdtemp makes it private
            temporary.rename(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return folder


def _umask() -> int:
    """The process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def contents(name: PluginName, parts: Sequence[Part]) -> dict[str, str]:
    """The files of a package: path -> text."""
    items = {part: name.item(part) for part in parts}
    kinds = [PARTS[part][0] for part in parts]
    kind = kinds[0] if len(kinds) == 1 else f"{', '.join(kinds[:-1])} and {kinds[-1]}"
    common = {
        "distribution": name.distribution,
        "module": name.module,
        "version": ".".join(__version__.split(".")[:2]),
        "summary": f"A {kind} for sdesamplers.",
        "names": " ".join(items.values()),
        "entry_points": "\n".join(f'{name.name}-{part} = "{name.module}.{part}"' for part in parts),
        "contents": "\n".join(f"{part}.py   the {PARTS[part][0]} `{item}`" for part, item in items.items()),
        "rows": "\n".join(
            f"| `{item}` | {PARTS[part][0]} | [{part}.py]({name.module}/{part}.py) |" for part, item in items.items()
        ),
        "commands": "\n".join(PARTS[part][1].format(item=item) for part, item in items.items()),
    }
    files = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        ".gitignore": "gitignore",
        ".github/workflows/tests.yml": "tests.yml",
        f"{name.module}/__init__.py": "package.py",
        "tests/test_conformance.py": "test_conformance.py",
    }
    made = {path: _filled(template, common) for path, template in files.items()}
    made[f"{name.module}/py.typed"] = ""
    for part, item in items.items():
        own = {"name": item, "function": name.function(part), "class_name": name.class_name(part)}
        for path, template in (
            (f"{name.module}/{part}.py", f"{part}.py"),
            (f"tests/test_{part}.py", f"test_{part}.py"),
        ):
            made[path] = _filled(template, {**common, **own})
    return made


def _filled(template: str, values: Mapping[str, str]) -> str:
    """The text of a template with its placeholders filled."""
    file = resources.files(__package__) / "templates" / f"{template}.tmpl"
    return Template(file.read_text(encoding="utf-8")).substitute(values)
