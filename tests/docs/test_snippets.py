"""Every Python snippet of README.md and docs/*.md runs as printed, those of a page one after the other.

What a page needs of the network is replaced beside the code and not in it: tiny models stand under the names that it
loads. A snippet that does not run here stands in `SKIPPED` with the reason. Blocks that begin with a comment
`# name.py` are also written to that file, and lines `sdesamplers ...` of docs/own-network.md are run as commands.
"""

from __future__ import annotations

import copy
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import sdesamplers as sds
from sdesamplers.cli import cli

ROOT = Path(__file__).parents[2]
SKIPPED = {
    ("interfaces.md", "import deepinv"): "deepinv is optional; tests/interfaces/test_deepinv.py makes these calls",
    ("interfaces.md", "from skrample"): "skrample is optional; tests/interfaces/test_skrample.py runs it",
    ("interfaces.md", "import onnxruntime"): "ONNX Runtime is optional; tests/interfaces/test_runtimes.py runs it",
    (
        "pipelines.md",
        "from diffusers.guiders",
    ): "modular; tests/scheduler/test_connected_guiders.py runs one",
    (
        "sharing.md",
        "recipe.push_to_hub(",
    ): "uploads to the Hub; tests/sampling/test_recipe_files.py does so",
    ("start.md", "for batch in sds.stream(model, "): "draws 50,000 samples; docs/scaling.md runs it with 24",
    ("tuning.md", "tuning.push_to_hub("): "uploads to the Hub; tests/tuning/test_sharing.py pushes to one on 127.0.0.1",
}
"""(page, how the snippet begins): why it is not run."""


@dataclass(frozen=True)
class Snippet:
    page: str
    language: str
    text: str
    line: int

    @property
    def reason(self) -> str | None:
        """Why it is skipped."""
        heads = {head: why for (page, head), why in SKIPPED.items() if page == self.page}
        return next((why for head, why in heads.items() if self.text.startswith(head)), None)


def snippets(name: str, page: Path) -> list[Snippet]:
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [Snippet(name, m[1], m[2], text[: m.start()].count("\n") + 2) for m in found]


FILES = {"README.md": ROOT / "README.md"} | {
    page.relative_to(ROOT / "docs").as_posix(): page for page in sorted((ROOT / "docs").rglob("*.md"))
}
PAGES = {name: snippets(name, page) for name, page in FILES.items()}
RUN = {name: found for name, found in PAGES.items() if any(s.language == "python" for s in found)}
QUICK = {
    "comparing.md",
    "design.md",
    "interfaces.md",
    "langevin.md",
    "own-network.md",
    "serving.md",
    "training.md",
    "writing-items.md",
    "writing-samplers.md",
}
"""Pages whose snippets take seconds; the others sample pictures."""


def execute(snippet: Snippet, names: dict[str, object]) -> None:
    """Run a snippet in a page's namespace, with the page's line numbers in tracebacks."""
    code = compile("\n" * (snippet.line - 1) + snippet.text, str(ROOT / "docs" / snippet.page), "exec")
    first = snippet.text.splitlines()[0]
    if re.fullmatch(r"# \w+\.py", first):
        Path(first[2:]).write_text(snippet.text, encoding="utf-8")
        sys.modules.pop(Path(first[2:]).stem, None)  # another test's module of this name
    exec(code, names)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder of its own as the working directory, from which modules can be imported; nothing stays behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
    sds.use_registry(None)


PROJECT = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x, t):
        return self.layer(x) + 1e-3 * t[:, None, None, None]

net = Net()
"""


def stand_ins(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put in place, in the working directory or on the Hub, what a page takes for given."""
    if page == "README.md":
        Path("my_project.py").write_text(PROJECT, encoding="utf-8")
    if page == "guidance.md":
        from tiny_models import save_pipeline, tiny_unet

        save_pipeline(Path("my-digits"), unet=tiny_unet(num_class_embeds=11))
    if page in ("README.md", "start.md", "pipelines.md"):
        import diffusers
        import tiny_pipelines

        pipe = copy.deepcopy(tiny_pipelines.stable_diffusion())
        pipe.set_progress_bar_config(disable=True)
        monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", classmethod(lambda cls, name: pipe))
        known, taken = sds.load, sds.from_pipeline
        # A tiny UNet at 512 x 512 pixels attends to 65,536 places, so the size stays its own.
        monkeypatch.setattr(sds, "from_pipeline", lambda pipe, height=0, width=0, **words: taken(pipe, **words))

        def load(source, **words):
            return sds.from_pipeline(pipe, **words) if "/" in source else known(source, **words)

        monkeypatch.setattr(sds, "load", load)


def run_page(page: str) -> None:
    """Run a page's snippets, one after the other in one namespace."""
    names: dict[str, object] = {"__name__": "page"}
    for snippet in PAGES[page]:
        if snippet.reason is not None:
            continue
        if snippet.language == "python":
            execute(snippet, names)
        elif page == "own-network.md":
            for line in snippet.text.replace("\\\n", " ").splitlines():
                program, *arguments = shlex.split(line, comments=True)
                assert program == "sdesamplers"
                done = CliRunner().invoke(cli, arguments)
                assert done.exit_code == 0, f"{line}: {done.output} {done.exception}"


@pytest.mark.parametrize("page", [pytest.param(p, marks=() if p in QUICK else pytest.mark.slow) for p in RUN])
def test_every_snippet_of_a_page_runs_as_printed(page, elsewhere, monkeypatch):
    stand_ins(page, monkeypatch)
    with torch.random.fork_rng(devices=[]):
        run_page(page)


def test_what_is_skipped_is_there():
    for page, head in SKIPPED:
        assert any(snippet.text.startswith(head) for snippet in PAGES[page]), (page, head)


def test_readme_names_the_page_and_wraps_a_network_first():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "docs/own-network.md" in text
    first = next(s for s in PAGES["README.md"] if s.language == "python")
    assert "sds.wrap(" in first.text
