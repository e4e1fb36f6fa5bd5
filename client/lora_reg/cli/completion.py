"""completion."""

from __future__ import annotations

import click

from lora_reg.cli.state import Command, State, pass_state


@click.command(
    cls=Command,
    examples=(
        'eval "$(lora-reg completion bash)"',
        "lora-reg completion fish > ~/.config/fish/completions/lora-reg.fish",
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@pass_state
def completion(state: State, shell: str) -> None:
    """Print the completion script of a shell.

    Load it at the start of a session: in ~/.bashrc or ~/.zshrc for bash and zsh, in a file of its own for fish.
    """
    from click.shell_completion import get_completion_class

    from lora_reg.cli.main import cli

    found = get_completion_class(shell)
    assert found is not None
    script = found(cli, {}, "lora-reg", "_LORA_REG_COMPLETE").source()
    output = state.output()
    if output.mode == "json":
        output.result("lora-reg/completion/1", {"shell": shell, "script": script}, human=(), quiet=())
    else:
        output.text(script)
