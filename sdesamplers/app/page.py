"""The page and its server, on this machine only: no share link, no analytics, nothing loaded from elsewhere."""

from __future__ import annotations

import hashlib
import html
import os
import re
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import SdesamplersError, UsageError
from ..models.base import Model
from ..registry.registry import default_registry
from ..text import one_line
from .figures import grids_figure, samples_picture, trajectory_picture
from .runs import (
    LONGEST_PROMPT,
    MOST_NFE,
    MOST_SAMPLERS,
    MOST_SAMPLES,
    Shown,
    Wanted,
    check_shows,
    classes_of,
    run_samplers,
    takes_prompt,
)

HOST = "127.0.0.1"
FIRST = ("quality", "dpmpp-2m", "ddim")
"""Samplers that are chosen when the page opens."""
WAITING = 8
"""Requests that may wait; one runs at a time."""
COLUMNS = {"sampler": "150px", "NFE": "80px", "steps": "80px", "seconds": "100px", "note": "360px"}
"""Columns of the table of runs, and their widths."""
FONTS = ["system-ui", "sans-serif"]
CONTRASTS = {
    "button_primary_background_fill": "*primary_600",
    "button_primary_background_fill_hover": "*primary_700",
    "body_text_color_subdued": "*neutral_600",
    "body_text_color_subdued_dark": "*neutral_300",
    "input_placeholder_color": "*neutral_600",
    "input_placeholder_color_dark": "*neutral_300",
}
"""Colours with more contrast than the theme's."""
NO_CLASS = "none"


def import_gradio() -> Any:
    """gradio, without its analytics.

    Raises:
        UsageError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
    try:
        import gradio  # optional, and takes seconds to import
    except ImportError:
        raise UsageError("the app needs gradio: pip install 'sdesamplers[app]'") from None
    return gradio


def check_port(port: int | None) -> None:
    """Raise a UsageError if a port of this machine cannot be used; None is any port."""
    if port is None:
        return
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((HOST, port))
        except OSError as error:
            reason = error.strerror or error
            raise UsageError(f"port {port}: {reason}; pass another {{port}}", arguments={"port": "port="}) from None


@contextmanager
def serve(model: Model, samplers: Sequence[str] = FIRST, port: int | None = None) -> Iterator[str]:
    """Serve the page while the context is open; yield its address.

    Args:
        model: the model, whose samples are images.
        samplers: those that are chosen when the page opens.
        port: of the server; by default a free one from 7860 on.

    Raises:
        UsageError: gradio is not installed, the samples are not images, or the port cannot be used.
    """
    check_port(port)
    gradio = import_gradio()
    check_shows(model)
    with TemporaryDirectory(prefix="sdesamplers-app-") as folder:
        page = Page(model, samplers, Path(folder)).build(gradio)
        page.queue(max_size=WAITING, default_concurrency_limit=1, api_open=False)
        theme = gradio.themes.Default(primary_hue="indigo", font=FONTS, font_mono=["ui-monospace", "monospace"])
        theme.set(**CONTRASTS)
        try:
            _, address, _ = page.launch(
                server_name=HOST,
                server_port=port,
                share=False,
                prevent_thread_lock=True,
                quiet=True,
                theme=theme,
                footer_links=[],
                ssr_mode=False,
                max_file_size=0,
                allowed_paths=[folder],
            )
        except OSError as error:  # no free port
            raise UsageError(one_line(error)) from None
        try:
            yield address.rstrip("/")
        finally:
            page.close(verbose=False)


class Page:
    """The page of one model.

    Args:
        model: the model.
        samplers: those that are chosen at first.
        folder: for the recipes that are downloaded.
    """

    def __init__(self, model: Model, samplers: Sequence[str], folder: Path) -> None:
        self.model, self.samplers, self.folder = model, list(samplers), folder
        self.stops: dict[str, threading.Event] = {}
        registry = default_registry()
        self.names = list(dict.fromkeys([*self.samplers, *registry.sampler_names()]))
        for name in self.samplers:
            registry.resolve(name)

    def build(self, gr: Any) -> Any:
        """The page as gradio's `Blocks`."""
        model = self.model
        with gr.Blocks(title=f"sdesamplers: {model.name}", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
            gr.Markdown("# Samplers side by side", elem_id="title")
            gr.Textbox(repr(model), label="Model", interactive=False, max_lines=1)
            with gr.Row():
                with gr.Column(scale=1, min_width=280):
                    inputs = self._inputs(gr)
                    with gr.Row():
                        run = gr.Button("Sample", variant="primary", elem_id="run")
                        stop = gr.Button("Stop", elem_id="stop")
                with gr.Column(scale=3, min_width=320):
                    outputs = self._outputs(gr)
            texts, choice, download = outputs[-3], outputs[-2], outputs[-1]
            code = outputs[-4]
            run.click(self._run(gr), inputs, outputs, concurrency_limit=1, show_progress_on=outputs[0])
            stop.click(self._stop(gr), None, None, queue=False)
            choice.change(self._choose(gr), [choice, texts], [code, download], queue=False)
        return page

    def _inputs(self, gr: Any) -> list[Any]:
        """Samplers, evaluations, samples, seed, condition and guidance."""
        classes = classes_of(self.model)
        choices = [NO_CLASS, *map(str, range(classes))]
        guided = bool(classes) or takes_prompt(self.model)
        return [
            gr.Dropdown(
                self.names,
                value=self.samplers,
                multiselect=True,
                max_choices=MOST_SAMPLERS,
                label=f"Samplers (up to {MOST_SAMPLERS})",
                elem_id="samplers",
            ),
            gr.Slider(1, MOST_NFE, 10, step=1, label="Model evaluations per sample", elem_id="nfe"),
            gr.Slider(1, MOST_SAMPLES, 4, step=1, label="Samples", elem_id="samples"),
            gr.Number(0, minimum=0, maximum=2**32 - 1, precision=0, label="Seed", elem_id="seed"),
            gr.Textbox(
                label="Prompt", max_length=LONGEST_PROMPT, visible=takes_prompt(self.model), lines=2, elem_id="prompt"
            ),
            gr.Dropdown(choices, value=NO_CLASS, label="Class", visible=bool(classes), elem_id="class"),
            gr.Number(1.0, label="Guidance scale", visible=guided, elem_id="guidance"),
        ]

    def _outputs(self, gr: Any) -> list[Any]:
        """Pictures, table, trajectory, grids, recipe, all recipes, the choice of one, and its download."""
        with gr.Tab("Samples"):
            gr.Markdown("The samples of each sampler, from the same starting noise.")
            gallery = gr.Gallery(
                label="Samples",
                show_label=False,
                columns=3,
                format="png",
                object_fit="contain",
                buttons=["download", "fullscreen"],
                elem_id="gallery",
            )
            table = gr.Dataframe(
                headers=list(COLUMNS),
                column_widths=list(COLUMNS.values()),
                interactive=False,
                wrap=True,
                label="Runs (NFE: evaluations of the model per sample)",
                elem_id="table",
            )
        with gr.Tab("Trajectory"):
            gr.Markdown(
                "The first sample of each run at up to eight times, from noise on the left to data; one row for each "
                "sampler, in the order of the table."
            )
            trajectory = gr.Image(
                label="Trajectories",
                show_label=False,
                format="png",
                interactive=False,
                buttons=["download", "fullscreen"],
                elem_id="trajectory",
            )
        with gr.Tab("Grids"):
            gr.Markdown("The time grid of each run on the log-SNR axis.")
            grids = gr.Plot(label="Grids", show_label=False, elem_id="grids")
        with gr.Tab("Recipe"):
            choice = gr.Radio([], label="Sampler", elem_id="choice")
            code = gr.Code(language=None, interactive=False, label="Recipe", elem_id="recipe")
            download = gr.DownloadButton("Download the recipe", interactive=False, elem_id="download")
        return [gallery, table, trajectory, grids, code, gr.State({}), choice, download]

    def _run(self, gr: Any) -> Any:
        """The function of the button Sample."""

        def run(
            samplers: list[str],
            nfe: float,
            count: float,
            seed: float | None,
            prompt: str,
            label: str,
            scale: float | None,
            request: gr.Request,
            progress: Any = gr.Progress(),  # noqa: B008
        ) -> list[Any]:
            condition: Any = (prompt or "") if takes_prompt(self.model) else None
            if classes_of(self.model) and label != NO_CLASS:
                condition = int(label)
            stop = self.stops[str(request.session_hash)] = threading.Event()
            try:
                wanted = Wanted(
                    samplers or [],
                    int(nfe),
                    int(count),
                    int(seed or 0),
                    condition,
                    1.0 if scale is None else float(scale),
                )
                shown = run_samplers(self.model, wanted, lambda share, text: progress(share, desc=text), stop)
                return self._shown(gr, shown)
            except SdesamplersError as reason:
                raise gr.Error(html.escape(one_line(reason)), print_exception=False) from None
            finally:
                self.stops.pop(str(request.session_hash), None)

        run.__annotations__["request"] = gr.Request  # gradio reads it, and it is imported late
        return run

    def _shown(self, gr: Any, shown: Sequence[Shown]) -> list[Any]:
        """The values of the outputs."""
        done = [(each.name, each.result, each.seconds) for each in shown if each.result is not None]
        names, results = [name for name, _, _ in done], [result for _, result, _ in done]
        captions = [f"{name}: {result.nfe} evaluations, {seconds:.2f} s" for name, result, seconds in done]
        recipes = {name: result.recipe.as_text() for name, result, _ in done}
        first = names[0]
        return [
            list(zip(map(samples_picture, results), captions, strict=True)),
            [each.row for each in shown],
            trajectory_picture(self.model, results),
            grids_figure(self.model, names, [result.recipe for result in results]),
            recipes[first],
            recipes,
            gr.Radio(names, value=first),
            self._file(gr, first, recipes[first]),
        ]

    def _file(self, gr: Any, name: str, text: str) -> Any:
        """The download of a recipe."""
        stem = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") or "recipe"
        folder = self.folder / hashlib.sha256(text.encode()).hexdigest()[:16]  # other tabs may have another recipe
        folder.mkdir(exist_ok=True)
        file = folder / f"{stem}.yaml"
        file.write_text(text, encoding="utf-8")
        return gr.DownloadButton(f"Download {file.name}", value=str(file), interactive=True)

    def _choose(self, gr: Any) -> Any:
        """The function of the choice of a recipe."""

        def choose(name: str | None, texts: dict[str, str]) -> list[Any]:
            if not name or name not in texts:
                return [gr.skip(), gr.skip()]
            return [texts[name], self._file(gr, name, texts[name])]

        return choose

    def _stop(self, gr: Any) -> Any:
        """The function of the button Stop, for the run of the same browser tab."""

        def stop(request: gr.Request) -> None:
            running = self.stops.get(str(request.session_hash))
            if running is not None:
                running.set()

        stop.__annotations__["request"] = gr.Request
        return stop
