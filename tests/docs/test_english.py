"""The glossary's check finds each of its expressions, in code and on pages, with its place."""

import check_english
import pytest

PLANTED = {
    "docstring": ('"""The network is told t."""\n', "1: 'told'"),
    "message": ('x = 1\nraise ValueError(f"{x} is none of the model\'s makers")\n', "2: 'makers'"),
    "comment": ("x = 1  # None where nothing is set\n", "1: 'None where'"),
    "several lines": ('"""One line.\n\nWhether it is so.\n"""\n', "3: 'Whether'"),
    "page": ("# Title\n\nThe sampler asks the model.\n", "3: 'asks the model'"),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_expression_is_found(tmp_path, monkeypatch, kind):
    text, found = PLANTED[kind]
    file = tmp_path / ("page.md" if kind == "page" else "module.py")
    file.write_text(text)
    monkeypatch.setattr(check_english, "ROOT", tmp_path)
    assert any(f"{file.name}:{found}" in line for line in check_english.findings(file))


def test_plain_english_and_identifiers_pass(tmp_path, monkeypatch):
    file = tmp_path / "module.py"
    file.write_text('"""E[x0 | x], where x = alpha x0 + sigma eps."""\nwords = answers = "told"\n')
    monkeypatch.setattr(check_english, "ROOT", tmp_path)
    assert list(check_english.findings(file)) == []


@pytest.mark.slow  # `make lint` runs the same
def test_the_tree_has_none(capsys):
    assert check_english.main() == 0, capsys.readouterr().out
