"""compose: adapters of one base into one adapter, by a job of the registry or on this machine.

The methods, their parameters and their words are those of `lora_contract.methods`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from lora_contract.methods import DEFAULT_METHOD, METHODS, Method, Parameter, check_parameters, find_method
from lora_reg.cli.derive import DTYPES, Counted, F, Where, by_job, kernels, weighted, weighted_folders, where_options
from lora_reg.cli.losses import of_job, tell_here
from lora_reg.cli.state import Command, State, pass_state
from lora_reg.formatting.text import plural, table

if TYPE_CHECKING:
    from lora_contract.wire.jobs import JobView
    from lora_reg.client import Client

_TYPES: Final[dict[str, Any]] = {"number": click.FLOAT, "integer": click.INT}


def parameter_options(command: F) -> F:
    """An option for each name of a parameter in the table. A name has one type whatever the method, while its range and
    its meaning are the method's own: `check_parameters` sees to the one, `--methods` tells the other."""
    known = {parameter.name: parameter for method in METHODS.values() for parameter in method.parameters}
    for name, parameter in sorted(known.items(), reverse=True):
        users = [method.name for method in METHODS.values() if name in {own.name for own in method.parameters}]
        kind = click.Choice(parameter.choices) if parameter.kind == "choice" else _TYPES[parameter.kind]
        option = click.option(f"--{name.replace('_', '-')}", name, type=kind, help=f"Of {', '.join(users)}.")
        command = option(command)
    return command


def _list_methods(state: State) -> None:
    from lora_reg.cli.output import to_object

    state.output().result(
        "lora-reg/methods/1",
        {"methods": to_object(list(METHODS.values()))},
        human=[line for method in METHODS.values() for line in _told(method)],
        quiet=list(METHODS),
    )


def _told(method: Method) -> list[str]:
    seeded = "; seeded" if method.seeded else ""
    rows = [(f"--{own.name.replace('_', '-')}", own.range, _default(own), own.meaning) for own in method.parameters]
    return [
        f"{method.name}  {method.summary}",
        f"  {method.source}{seeded}",
        *(f"    {line}" for line in table(("OPTION", "RANGE", "DEFAULT", "MEANING"), rows)),
        "",
    ]


def _default(parameter: Parameter) -> str:
    return parameter.otherwise if parameter.default is None else str(parameter.default)


@click.command(cls=Command)
@click.argument("adapters", nargs=-1, metavar="REF[=W]...")
@click.option(
    "--method",
    type=click.Choice(list(METHODS)),
    default=DEFAULT_METHOD,
    show_default=True,
    metavar="NAME",
    help="How; --methods tells of each.",
)
@click.option("--methods", "listing", is_flag=True, help="List the methods and their parameters, and do nothing else.")
@parameter_options
@click.option("--seed", type=click.IntRange(0), help="Of the methods that draw random numbers; 0 without it.")
@click.option("--dtype", type=DTYPES, help="Of the factors; without it, the widest of the adapters'.")
@where_options
@pass_state
def compose(
    state: State,
    /,
    where: Where,
    adapters: tuple[str, ...],
    method: str,
    listing: bool,
    seed: int | None,
    dtype: str | None,
    **given: Any,
) -> None:
    """Compose adapters of one base into one adapter.

    W is the adapter's weight, 1 where it is not given. The same composition asked for again is the same job and the
    same result. On this machine: --local ADAPTER_DIR[=W]... -o DIR.
    """
    if listing:
        _list_methods(state)
        return
    if not adapters:
        raise click.UsageError("Missing argument 'REF[=W]...'.")
    chosen = find_method(method)
    if seed is not None and not chosen.seeded:
        raise click.UsageError(f"--seed does not go with {method}, which draws no random numbers.")
    parameters = check_parameters(method, {name: value for name, value in given.items() if value is not None})
    output = where.here()
    if output is None:
        _by_job(state, where, adapters, chosen, parameters, seed or 0, dtype)
        return
    folders = weighted_folders(adapters)
    composing = kernels("composing", "Composing")
    progress = state.progress()
    try:
        report = composing.compose_folders(
            folders,
            output,
            method=method,
            parameters=parameters,
            seed=seed or 0,
            dtype=dtype,
            progress=Counted(progress, f"Composing {plural(len(folders), 'adapter')}", "modules"),
        )
    finally:
        progress.end()
    tell_here(state, "compose", output, report)


def _by_job(
    state: State,
    where: Where,
    adapters: tuple[str, ...],
    method: Method,
    parameters: dict[str, Any],
    seed: int,
    dtype: Any,
) -> None:
    from lora_contract.wire.operations import ComposeRequest, WeightedAdapter

    chosen = [weighted(text) for text in adapters]

    def submit(client: Client, target: dict[str, Any]) -> JobView:
        return client.compose(
            ComposeRequest(
                adapters=[WeightedAdapter(adapter=str(client.parse(text)), weight=weight) for text, weight in chosen],
                method=method.name,
                parameters={name: value for name, value in parameters.items() if value is not None},
                seed=seed,
                dtype=dtype,
                **target,
            )
        )

    by_job(state, where, submit, schema="lora-reg/compose/1", shown=of_job)
