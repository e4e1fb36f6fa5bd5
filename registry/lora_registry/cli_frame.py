"""The frame of the commands of `lora-registry`: errors, settings, logging."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from lora_contract.errors import RegistryError
from lora_registry import settings as settings_module
from lora_registry.settings import ServiceSettings

INTERRUPTED: Final = 130

data_option = click.option(
    "--data", type=click.Path(path_type=Path), help="Folder for database and blobs (LORA_REG_DATA)."
)


def exit_on_error(function: Callable[..., Any]) -> Callable[..., Any]:
    """Print an error and its hint instead of a traceback, and exit with its status."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except RegistryError as error:
            _fail(error)
        except ModuleNotFoundError as error:
            if not error.name or error.name.startswith("lora_"):
                raise
            package = error.name.partition(".")[0]
            _fail(
                RegistryError(
                    "usage",
                    f"This command needs the Python package {package}, which is not installed.",
                    hint="Install lora-reg with the extra `server`, or `worker` to run jobs.",
                )
            )
        except OSError as error:
            path = f": {error.filename}" if error.filename else ""
            _fail(RegistryError("local-io", f"{error.strerror or type(error).__name__}{path}."))
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)

    return run


def _fail(error: RegistryError) -> NoReturn:
    click.echo(f"error: {error.detail}\nhint: {error.hint}", err=True)
    sys.exit(error.kind.exit)


def load(**overrides: Any) -> ServiceSettings:
    """Load settings (options before environment before file) and set up logging."""
    config = settings_module.load(os.environ, **overrides)
    logging.basicConfig(
        level=config.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    for noisy in ("dbos", "alembic", "botocore", "boto3", "httpx2", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return config
