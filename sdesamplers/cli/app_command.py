"""The command that shows samplers side by side in a browser: app."""

from __future__ import annotations

import threading
from typing import Any

import click

from .group import cli
from .options import load_model, model_options
from .streams import say


@cli.command("app")
@click.argument("source", metavar="MODEL")
@click.option(
    "--samplers", default="quality,dpmpp-2m,ddim", show_default=True, help="Samplers that are chosen at first."
)
@click.option("--port", type=click.IntRange(1, 65535), help="Port on 127.0.0.1; by default a free one from 7860 on.")
@model_options
def app_command(source: str, samplers: str, port: int | None, **kwargs: Any) -> None:
    """Show samplers side by side in a browser: samples, trajectories, grids, and the recipe to download.

    Serves the page on this machine until Ctrl-C. It needs gradio: pip install 'sdesamplers[app]'
    """
    from ..app.page import check_port, import_gradio, serve
    from ..errors import UsageError

    check_port(port)
    import_gradio()
    model, condition = load_model(source, kwargs)
    if condition is not None:
        raise UsageError("the page has its own fields for the prompt and the class; omit --prompt and --condition")
    try:
        with serve(model, [name.strip() for name in samplers.split(",")], port) as address:
            say(f"{address} (Ctrl-C stops it)")
            threading.Event().wait()
    except KeyboardInterrupt:
        say("stopped")
