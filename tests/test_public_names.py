"""Public names: one list, the stub, and each name the object that its module defines."""

import ast
import builtins
import importlib
import subprocess
import sys
import types
from pathlib import Path

import pytest

import sdesamplers as sds
from sdesamplers.public import read_stub

HOMES = read_stub(sds.__file__)


def test_every_import_of_the_stub_is_read():
    stub = ast.parse(Path(sds.__file__).with_suffix(".pyi").read_text())
    imports = [(alias.name, node.module or "") for node in stub.body[1:] for alias in node.names]
    assert dict(imports) == HOMES
    assert len(imports) == len(HOMES)


@pytest.mark.parametrize("name", HOMES)
def test_a_public_name_is_what_its_module_defines(name):
    path = f"sdesamplers.{HOMES[name]}" if HOMES[name] else "sdesamplers"
    value = getattr(sds, name)
    assert value is getattr(importlib.import_module(path), name)
    if isinstance(value, type | types.FunctionType) and not isinstance(value, types.GenericAlias):
        assert value.__module__ == "sdesamplers"
    assert name in dir(sds)
    assert (name in sds.__all__) is (name != "reversed")


def test_a_star_import_leaves_pythons_names_alone():
    names: dict[str, object] = {}
    exec("from sdesamplers import *", names)
    assert not {name for name in names if hasattr(builtins, name)} - {"__builtins__", "__doc__"}
    assert names["sample"] is sds.sample


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"^module 'sdesamplers' has no attribute 'sampel'$"):
        _ = sds.sampel


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, sdesamplers; print(sorted({'torch', 'numpy', 'diffusers', 'scipy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
