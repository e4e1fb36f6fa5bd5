"""base add NAME hf://ORG/NAME."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_reg.cli.state import State


def add_from_hub(
    state: State,
    name: str,
    source: str,
    endpoint: str | None,
    token_file: str | None,
    weights: bool,
    aliases: tuple[str, ...],
    tags: tuple[str, ...],
    message: str,
) -> None:
    """Register a base of a Hub and print what was fetched of it; options as of `base add`."""
    from lora_reg.cli.push import print_pushed
    from lora_reg.formatting.text import size
    from lora_reg.importing import hub
    from lora_reg.importing.hub_base import add_base_from_hub
    from lora_reg.importing.source import parse_repository

    repo, revision = parse_repository(source)
    output = state.output()
    opened = hub.connect(endpoint, token_file)
    try:
        made = add_base_from_hub(
            state.client(),
            name,
            opened,
            repo,
            revision,
            weights=weights,
            aliases=aliases,
            tags=tags,
            message=message,
            progress=state.progress(),
        )
    finally:
        opened.close()
    output.note(f"{size(made.received)} fetched from {made.host}; the weights have {size(made.weights)}.")
    if made.pushed.result is not None and made.pushed.result.version.weights_absent:
        elsewhere = "" if endpoint is None else f" --endpoint {endpoint}"
        output.note(
            f"note: The weights are not stored. The first job that reads them fetches them from {made.host}, if the "
            f"service may; `lora-reg base add {name} {source} --weights{elsewhere}` sends them now."
        )
    print_pushed(output, "lora-reg/base-add/1", made.pushed, then=f"lora-reg push DIR --base {name}")
