"""What the documentation site adds to docs/*.md: the repository's other pages, links that leave docs/, and equations.

The pages are written for GitHub: links between files are relative, equations are `$...$` and blocks of ```math. Here
README.md becomes the index, the pages in `INCLUDED` join the site (notebooks with their outputs), links to other files
lead to the repository, and equations become MathML, which browsers draw without a script.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from markdown.preprocessors import Preprocessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from notebook_pages import notebook_markdown

ROOT = Path(__file__).resolve().parent.parent
INCLUDED = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    "benchmarks/results/*.md",
    "benchmarks/results/*.png",
    "examples/*.ipynb",
    "examples/third_party_plugin/README.md",
    "sdesamplers/assets/*/README.md",
    "studies/README.md",
    "studies/results/*.md",
    "studies/results/*.png",
)
"""Files outside of docs/ that are pages, and their pictures."""

LINK = re.compile(r"(?<=\]\()(?P<target>[^)\s#:]+)(?P<anchor>#[^)\s]*)?(?=\))")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Render equations."""
    config.markdown_extensions.append(Equations())  # type: ignore[arg-type]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """README.md as the index, the included pages under their paths in the repository, and the schemas for editors."""
    files.append(File.generated(config, "index.md", abs_src_path=str(ROOT / "README.md")))
    for pattern in INCLUDED:
        for path in sorted(ROOT.glob(pattern)):
            page = path.relative_to(ROOT)
            if page.name == "README.md" and len(page.parts) > 2:  # not the first page of a section
                page = page.parent.with_suffix(".md")
            if page.suffix == ".ipynb":
                page = page.with_suffix(".md")
            files.append(File.generated(config, page.as_posix(), abs_src_path=str(path)))
    for path in sorted(ROOT.glob("sdesamplers/schemas/*.json")):
        files.append(File.generated(config, f"schemas/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn relative links of the repository into links of the site, or of the repository if the file has no page."""
    pages = {path: file.src_uri for file in files if (path := source_path(file))}
    here = posixpath.dirname(source_path(page.file))

    def resolved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(here, link["target"]))
        anchor = link["anchor"] or ""
        if target in pages:
            return posixpath.relpath(pages[target], posixpath.dirname(page.file.src_uri) or ".") + anchor
        if (ROOT / target).exists():
            kind = "tree" if (ROOT / target).is_dir() else "blob"
            return f"{config.extra['repository']}/{kind}/main/{target}{anchor}"
        return link[0]  # for mkdocs to report

    if source_path(page.file).endswith(".ipynb"):
        markdown = notebook_markdown(markdown)
    return LINK.sub(resolved, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leave out what mkdocs-click 0.9 writes for an option without a default, under click 8.3 and later."""
    return html.replace("<code>Sentinel.UNSET</code>", "")


def source_path(file: File) -> str:
    """A file's path in the repository; empty for the theme's files."""
    path = Path(file.abs_src_path or "/")
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else ""


# --- equations -------------------------------------------------------------------------------------------------------


def mathml(latex: str, display: str) -> str:
    """An equation as MathML."""
    latex = re.sub(r"\\mathrm\{(\w+)\}", r"\\text{\1}", latex)  # upright; browsers ignore mathvariant
    latex = re.sub(r"\\(log|cos|sin|tan)\b(?! *[(_^])", r"\\,\\\1\\,", latex)  # the spaces beside an operator's name
    latex = latex.replace(r"\mathcal N", "\N{MATHEMATICAL SCRIPT CAPITAL N}")
    return convert(latex, display=display)


class InlineEquation(InlineProcessor):
    """`$...$`."""

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str | Element, int, int]:  # type: ignore[override]  # noqa: N802
        """Replace the match by MathML."""
        return self.md.htmlStash.store(mathml(m[1], "inline")), m.start(0), m.end(0)


class BlockEquations(Preprocessor):
    """Blocks of ```math."""

    def run(self, lines: list[str]) -> list[str]:
        """Replace the blocks by MathML."""

        def block(found: re.Match[str]) -> str:
            return "\n" + self.md.htmlStash.store(f'<div class="equation">{mathml(found[1], "block")}</div>') + "\n"

        return re.sub(r"^```math\n(.*?)^```$", block, "\n".join(lines), flags=re.DOTALL | re.MULTILINE).split("\n")


class Equations(Extension):
    """Equations as GitHub writes them, rendered to MathML."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        """Register both: blocks before fenced code (25), inline equations after code (190) and before escapes (180)."""
        md.preprocessors.register(BlockEquations(md), "block-equations", 28)
        md.inlinePatterns.register(InlineEquation(r"\$(?=[^\s$])([^$]+?)(?<=[^\s])\$(?!\d)", md), "equations", 185)
