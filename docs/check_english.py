"""Find expressions that CONTRIBUTING.md replaces by plain English, in code and pages.

python docs/check_english.py
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CODE = ("sdesamplers", "plugins", "examples", "benchmarks", "studies", "docs")
PAGES = ("README.md", "CONTRIBUTING.md", "docs", "examples", "benchmarks", "studies")
EXPRESSIONS = {
    r"\btold\b": "is passed, receives",
    r"\btells (its|the|a) (network|model|sampler)s?\b": "passes to",
    r"\b(ask|asks|asked|asking) (the|its|a) (model|network)": "evaluate",
    r"\b(model|network)s? (is|are|was|were) asked\b": "is evaluated",
    r"\banswer(s|ed)?\b": "return, output, prediction",
    r"\bwords\b": "arguments, options, keys, terms",
    r"\bas you say\b": "set by the caller",
    r"\bwhole or not at all\b": "atomic",
    r"\bkin\b": "related methods",
    r"\bmakers?\b": "authors",
    r"\bgo(es)? on\b": "continues",
    r"\bso many\b": "the number",
    r"\bhand(s|ed)? (over|on|out)\b": "pass, return",
    r"\b(None|nothing|empty|zero|0|False|True) where\b": "if",
    r"\bwhere (none|nothing|there (is|are|was|were)|one (is|was))\b": "if",
    r"\bwhere (it (has|is|was|can|does)|they (are|were|have))\b": "if, for models that",
    r"(?m)^Whether\b": "True if",
    r"\bit says nothing\b": "is undefined",
}
"""An expression (a regular expression) and what to write instead."""


def docstrings_and_messages(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of every string and comment of a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def findings(path: Path) -> Iterator[str]:
    """A line for each expression found in a file."""
    text = path.read_text()
    parts = docstrings_and_messages(text) if path.suffix == ".py" else [(1, text)]
    for line, part in parts:
        for expression, better in EXPRESSIONS.items():
            for match in re.finditer(expression, part):
                at = line + part.count("\n", 0, match.start())
                yield f"{path.relative_to(ROOT)}:{at}: {match.group()!r}: write {better}"


def main() -> int:
    """Print the findings; 1 if there are any."""
    files = [file for folder in CODE for file in sorted((ROOT / folder).rglob("*.py"))]
    for entry in PAGES:
        page = ROOT / entry
        files += sorted(page.rglob("*.md")) if page.is_dir() else [page]
    # This file and the glossary quote what they forbid.
    files = [file for file in files if file.name not in ("check_english.py", "CONTRIBUTING.md")]
    found = [line for file in files for line in findings(file)]
    print("\n".join(found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
