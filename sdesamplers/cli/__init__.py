"""The command line. Exit codes: 0 done, 1 failed, 2 wrong usage; errors are one line on standard error."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import click

from ..errors import SdesamplersError
from . import density_commands, registry_commands, run_commands
from .group import cli

__all__ = ["cli", "density_commands", "main", "registry_commands", "run_commands"]


def main(arguments: list[str] | None = None) -> None:
    """Entry point: run, and turn every error into one line and an exit code."""
    debug = bool(os.environ.get("SDESAMPLERS_DEBUG"))
    try:
        with warnings.catch_warnings():
            warnings.showwarning = tell
            sys.exit(cli.main(args=arguments, prog_name="sdesamplers", standalone_mode=False) or 0)
    except SdesamplersError as error:
        if debug:
            raise
        fail(str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        fail(error.format_message(), 2)
    except (KeyboardInterrupt, click.Abort):
        fail("stopped", 1)
    except BrokenPipeError:
        os._exit(1)
    except Exception as error:
        if debug:
            raise
        fail(f"{type(error).__name__}: {error} (a bug of sdesamplers or a plugin; SDESAMPLERS_DEBUG=1 shows where)", 1)


def tell(message: Warning | str, *where: Any, **more: Any) -> None:
    """A warning as one line on standard error."""
    click.echo(f"warning: {' '.join(str(message).split())}", err=True)


def fail(message: str, code: int) -> None:
    """One line on standard error, and out."""
    click.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(code)
