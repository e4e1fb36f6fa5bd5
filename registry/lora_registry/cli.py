"""`lora-registry`: the service's own command line."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from lora_contract import __version__
from lora_contract.errors import ERRORS, RegistryError
from lora_registry import settings as settings_module
from lora_registry.settings import Settings


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="lora-registry")
def main() -> None:
    """The lora-reg service: API, job workers, and what an administrator needs."""


def telling(function: Callable[..., Any]) -> Callable[..., Any]:
    """Its RegistryErrors become a sentence, the way out, and the table's exit status."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except RegistryError as error:
            click.echo(f"error: {error.detail}\n{error.hint}", err=True)
            sys.exit(error.kind.exit)
        except ModuleNotFoundError as error:
            if not error.name or error.name.startswith("lora_"):
                raise
            package = error.name.partition(".")[0]
            click.echo(f"error: This command needs the Python package {package}, which is not installed.", err=True)
            click.echo("Install lora-reg with the extra `server`, or `worker` to run jobs.", err=True)
            sys.exit(ERRORS["usage"].exit)

    return run


def command(function: Callable[..., Any]) -> Any:
    """A command of `lora-registry` itself."""
    return main.command()(telling(function))


data_option = click.option(
    "--data", type=click.Path(path_type=Path), help="Folder for database and blobs (LORA_REG_DATA)."
)


@command
@data_option
@click.option("--host", help="Address to listen on (LORA_REG_HOST; default 127.0.0.1).")
@click.option(
    "--port", type=click.IntRange(0, 65535), help="Port to listen on (LORA_REG_PORT; default 8750; 0: any free one)."
)
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="API processes.")
def serve(data: Path | None, host: str | None, port: int | None, workers: int) -> None:
    """API and, on the embedded default (SQLite), one job worker beside it.

    With no setting at all: SQLite and blobs in ./lora-reg-data, loopback only, no login.
    """
    from lora_registry import serving

    config = load(data=data, host=host, port=port)
    serving.serve(config, processes=workers)


@command
@data_option
@click.option("--queues", default="orchestrate,cpu", show_default=True, help="Queues to take jobs from, by comma.")
@click.option("--name", help="A fixed name takes its own jobs up again at once after a restart; default: a new one.")
@click.option("--parent", type=int, hidden=True, help="Stop when this process ends.")
def worker(data: Path | None, queues: str, name: str | None, parent: int | None) -> None:
    """A job worker alone."""
    from lora_registry.tasks import working

    config = load(data=data)
    working.work(config, queues=tuple(queue.strip() for queue in queues.split(",")), name=name, parent=parent)


@command
@data_option
def migrate(data: Path | None) -> None:
    """Bring the database to the newest schema. Safe to run twice, and from several machines at once."""
    from lora_registry import admin

    config = load(data=data)
    admin.migrate(config)
    click.echo("The database is at the newest schema.")


@command
@data_option
def check(data: Path | None) -> None:
    """Say whether settings, database and blob store are fit for service."""
    from lora_registry import admin

    config = load(data=data)
    config.check_exposure()
    for line in admin.check(config):
        click.echo(line)


@command
@data_option
def fsck(data: Path | None) -> None:
    """Re-hash every blob that a version needs; exit 7 where one is missing or damaged."""
    from lora_registry import admin

    config = load(data=data)
    damaged = 0
    for number, (digest, problem) in enumerate(admin.fsck(config), 1):
        if problem:
            damaged += 1
            click.echo(f"{digest}: {problem}")
        elif number % 1000 == 0 and sys.stderr.isatty():
            click.echo(f"{number} blobs read", err=True)
    click.echo("Every blob is as it was stored." if not damaged else f"{damaged} blobs are missing or damaged.")
    if damaged:
        sys.exit(7)


@main.group()
def token() -> None:
    """Tokens for people, CI and inference servers."""


@token.command()
@telling
@click.argument("name")
@click.option("--role", type=click.Choice(["reader", "writer", "admin"]), required=True)
@click.option("--namespace", help="The one namespace it is for; default: all.")
@data_option
def create(name: str, role: str, namespace: str | None, data: Path | None) -> None:
    """Make a token and print it; it is shown this once."""
    from lora_registry import admin

    click.echo(admin.create_token(load(data=data), name=name, role=role, namespace=namespace))


def load(**overrides: Any) -> Settings:
    """Settings from file and environment under the options given; logging set up."""
    config = settings_module.load(os.environ, **overrides)
    logging.basicConfig(
        level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    for noisy in ("dbos", "alembic", "botocore", "boto3", "httpx", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return config


if __name__ == "__main__":
    main()
