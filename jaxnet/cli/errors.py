"""Errors and exit codes: what a user can act on ends with one line on stderr and 2; Ctrl-C with 130."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import jax

from jaxnet import train


def guarded(action: Callable[[], Any]) -> int:
    """Runs it and returns its exit code, or 0: an error that a user can act on becomes one line."""
    try:
        code = action()
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.UsageError as error:
        return complain(error.format_message())
    except (ValueError, OSError, train.NonFiniteError) as error:
        return complain(str(error))
    except MemoryError as error:
        return complain(f"not enough memory: {error}")
    except jax.errors.JaxRuntimeError as error:
        if not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        return complain(f"not enough memory: {error}")
    except (KeyboardInterrupt, click.Abort) as stop:  # click turns the first into the second
        print(f"\n{str(stop) or 'interrupted'}", file=sys.stderr)
        return 130
    return code if isinstance(code, int) else 0


def complain(message: str) -> int:
    """Says what is wrong, in one line."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def check_folder(path: str) -> None:
    """Raises a `click.UsageError` unless there is a folder to write the file into."""
    if not Path(path).parent.is_dir():
        raise click.UsageError(f"there is no folder {Path(path).parent} to write {Path(path).name} into.")
