"""The command line. Exit codes: 0 success, 1 failure, 2 usage error; an error prints one line on standard error."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import click

from ..errors import SdesamplersError
from ..text import one_line
from . import (
    app_command,
    check_command,
    compare_command,
    completion,
    density_commands,
    plugin_command,
    registry_commands,
    run_command,
    run_commands,
    sharing_commands,
    tune_command,
)
from .group import cli
from .streams import flushed, prepare, say, silence, writing

__all__ = [
    "app_command",
    "check_command",
    "cli",
    "compare_command",
    "completion",
    "density_commands",
    "main",
    "plugin_command",
    "registry_commands",
    "run_command",
    "run_commands",
    "sharing_commands",
    "tune_command",
]

completion.add_completions()


def main(arguments: list[str] | None = None) -> None:
    """Entry point: run a command, and turn every error into one line and an exit code."""
    debug = bool(os.environ.get("SDESAMPLERS_DEBUG"))
    prepare()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            code = cli.main(args=arguments, prog_name="sdesamplers", standalone_mode=False) or 0
        with writing():
            pass
        sys.exit(code)
    except SdesamplersError as error:
        if debug:
            raise
        fail(error.in_options, error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.NoSuchOption as error:
        fail(with_option_of_samplers(error), 2)
    except click.ClickException as error:
        fail(error.format_message(), 2)
    except (KeyboardInterrupt, click.Abort):
        fail("stopped", 1)
    except BrokenPipeError:  # the reader of a pipe, such as head, has exited
        silence(sys.stdout)
        sys.exit(1)
    except Exception as error:
        if is_out_of_memory(error):
            fail("out of memory; reduce --batch-size, --size or the precision (--dtype)", 1)
        if isinstance(error, OSError) and (not flushed() or is_of_echo(error)):
            fail(f"standard output could not be written: {error.strerror or error}", 1)
        if debug:
            raise
        fail(
            f"{type(error).__name__}: {error} (a bug in sdesamplers or a plugin; SDESAMPLERS_DEBUG=1 shows where)",
            1,
        )


def with_option_of_samplers(error: click.NoSuchOption) -> str:
    """The message about an unknown option, and how to pass it if it is an option of samplers, such as --eta."""
    from ..registry.foreign import OTHER_NAMES
    from ..registry.registry import default_registry  # and torch, which only this error needs

    name = error.option_name.lstrip("-").replace("-", "_")
    params = [] if error.ctx is None else [each.name for each in error.ctx.command.params]
    if (meant := OTHER_NAMES.get(name)) in params:
        return f"No such option: {error.option_name}; it is --{meant} here{SIZE if meant == 'size' else ''}"
    takes_options = error.ctx is not None and any(each.name == "option" for each in error.ctx.command.params)
    if takes_options and any(name in spec.options for spec in default_registry().samplers.values()):
        return f"No such option: {error.option_name}; an option of a sampler is passed as -o {name}=VALUE"
    return error.format_message()


SIZE = ", both height and width in pixels"
"""What --size is, for those who look for --height."""


def is_out_of_memory(error: Exception) -> bool:
    """True if memory ran out, on the machine or a device; torch has no error class for the machine's memory."""
    return isinstance(error, MemoryError) or any(
        word in str(error) for word in ("out of memory", "not enough memory", "can't allocate memory")
    )


def is_of_echo(error: OSError) -> bool:
    """True if click was printing, for example a help page; unbuffered output then leaves nothing to flush."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code is not click.echo.__code__:
        trace = trace.tb_next
    return trace is not None


def show_warning(message: Warning | str, *where: Any, **more: Any) -> None:
    """Print a warning as one line on standard error."""
    say(f"warning: {one_line(message)}", err=True)


def fail(message: str, code: int) -> None:
    """Print one line on standard error, and exit."""
    say(f"error: {one_line(message)}", err=True)
    sys.exit(code)
