"""compose: adapters of one base into one adapter, by a job of the registry or on this machine.

Methods, parameters and their help come from `lora_contract.methods`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from lora_contract.methods import DEFAULT_METHOD, METHODS, Method, Parameter, check_parameters, find_method
from lora_reg.cli.derive import (
    DTYPES,
    Counted,
    F,
    Where,
    by_job,
    device_option,
    kernels,
    weighted,
    weighted_folders,
    where_options,
)
from lora_reg.cli.losses import of_job, print_local
from lora_reg.cli.state import Command, State, pass_state
from lora_reg.formatting.text import plural, table

if TYPE_CHECKING:
    from lora_contract.wire.jobs import JobView
    from lora_reg.client import Client

_TYPES: Final[dict[str, Any]] = {"number": click.FLOAT, "integer": click.INT}


def parameter_options(command: F) -> F:
    """Add an option for each parameter name in the table.

    A name has one type in all methods. Its range depends on the method and is checked by `check_parameters`.
    """
    known = {parameter.name: parameter for method in METHODS.values() for parameter in method.parameters}
    for name, parameter in sorted(known.items(), reverse=True):
        kind = click.Choice(parameter.choices) if parameter.kind == "choice" else _TYPES[parameter.kind]
        option = click.option(f"--{name.replace('_', '-')}", name, type=kind, help=_help(name))
        command = option(command)
    return command


def _help(name: str) -> str:
    """The meaning of a parameter from the table; several if methods differ, with the methods of each."""
    meanings: dict[str, list[str]] = {}
    for method in METHODS.values():
        for own in method.parameters:
            if own.name == name:
                meanings.setdefault(own.meaning, []).append(method.name)
    if len(meanings) == 1:
        (meaning, users), *_ = meanings.items()
        return f"{meaning[0].upper()}{meaning[1:]} ({', '.join(users)})."
    return "; ".join(f"{', '.join(users)}: {meaning}" for meaning, users in meanings.items()) + "."


def _list_methods(state: State) -> None:
    from lora_reg.cli.output import to_object

    state.output().result(
        "lora-reg/methods/1",
        {"methods": to_object(list(METHODS.values()))},
        human=[line for method in METHODS.values() for line in _description(method)],
        quiet=list(METHODS),
    )


def _description(method: Method) -> list[str]:
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


@click.command(
    cls=Command,
    examples=(
        "lora-reg compose acme/a=0.7 acme/b=0.3 --method ties --density 0.5 --to acme/c",
        "lora-reg compose --local ./sql ./docs --method cat -o ./both",
        "lora-reg compose --methods",
    ),
)
@click.argument("adapters", nargs=-1, metavar="REF[=W]...")
@click.option(
    "--method",
    type=click.Choice(list(METHODS)),
    default=DEFAULT_METHOD,
    show_default=True,
    metavar="NAME",
    help="Composition method; --methods lists them.",
)
@click.option("--methods", "listing", is_flag=True, help="List methods and parameters, and exit.")
@parameter_options
@click.option("--seed", type=click.IntRange(0), help="Seed of methods that draw random numbers (default: 0).")
@click.option("--dtype", type=DTYPES, help="Output dtype of the factors (default: the widest of the inputs).")
@device_option
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
    device: str | None,
    **given: Any,
) -> None:
    """Compose adapters of one base into one adapter.

    W is the weight of the adapter (default: 1). The same composition requested again is the same job with the same
    result. To compose folders on this machine: --local ADAPTER_DIR[=W]... -o DIR.
    """
    if listing:
        _list_methods(state)
        return
    if not adapters:
        raise click.UsageError("Missing argument 'REF[=W]...'.")
    chosen = find_method(method)
    if seed is not None and not chosen.seeded:
        raise click.UsageError(f"--seed has no effect on {method}, which draws no random numbers.")
    parameters = check_parameters(method, {name: value for name, value in given.items() if value is not None})
    output = where.here()
    if output is None:
        _by_job(state, where, adapters, chosen, parameters, seed or 0, dtype, device)
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
            device=device or "cpu",
            progress=Counted(progress, f"Composing {plural(len(folders), 'adapter')}", "modules"),
        )
    finally:
        progress.end()
    print_local(state, "compose", output, report, device=device)


def _by_job(
    state: State,
    where: Where,
    adapters: tuple[str, ...],
    method: Method,
    parameters: dict[str, Any],
    seed: int,
    dtype: Any,
    device: Any,
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
                device=device or "cpu",
                **target,
            )
        )

    by_job(state, where, submit, schema="lora-reg/compose/1", shown=of_job)
