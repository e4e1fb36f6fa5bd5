"""cache list, rm."""

from __future__ import annotations

import click

from lora_reg.cli.state import LazyGroup, State, pass_state


@click.group(cls=LazyGroup)
def cache() -> None:
    """Manage the local cache of pulled versions."""


@cache.command("list", examples=("lora-reg cache list",))
@pass_state
def list_(state: State) -> None:
    """List the cached versions and the space they take.

    Versions share files: the total counts each file once.
    """
    from lora_reg.cache.contents import contents
    from lora_reg.cache.store import Cache
    from lora_reg.formatting.text import plural, short, size, table

    folder = state.settings().cache
    found = contents(Cache(folder))
    rows = [
        (f"{one.namespace}/{one.name}", short(one.digest), size(one.size), ", ".join(one.selectors))
        for one in found.versions
    ]
    state.output().result(
        "lora-reg/cache/1",
        {"path": str(folder), "size": found.size, "versions": found.versions},
        human=[
            *table(("REPOSITORY", "DIGEST", "SIZE", "PULLED AS"), rows),
            f"{plural(len(rows), 'version')}, {size(found.size)} in {folder}",
        ],
        quiet=[f"{one.namespace}/{one.name}@{one.digest}" for one in found.versions],
    )


@cache.command(
    examples=(
        "lora-reg cache rm acme/sql-writer",
        "lora-reg cache rm acme/sql-writer@sha256:1f3a...",
        "lora-reg cache rm --all",
    )
)
@click.argument("refs", metavar="REF...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Remove all versions and unfinished downloads.")
@pass_state
def rm(state: State, refs: tuple[str, ...], everything: bool) -> None:
    """Remove versions from the cache, and the files that no other cached version needs.

    REF is NAME for all cached versions of a repository, NAME:TAG or NAME:vN as it was pulled, or NAME@DIGEST. The
    registry and folders written with `pull -o` are not changed.
    """
    from lora_contract import reference
    from lora_contract.errors import RegistryError
    from lora_reg.cache.contents import contents, remove
    from lora_reg.cache.store import Cache
    from lora_reg.formatting.text import plural, size

    if bool(refs) == everything:
        raise click.UsageError("Name versions, or give --all.")
    settings = state.settings()
    store = Cache(settings.cache)
    versions = contents(store).versions
    chosen = list(versions) if everything else []
    for text in refs:
        wanted = reference.parse(text).with_namespace(settings.namespace).folded()
        matching = [one for one in versions if one.matches(wanted)]
        if not matching:
            raise RegistryError("not-found", f"{wanted} is not in the cache.", hint="See `lora-reg cache list`.")
        chosen += [one for one in matching if one not in chosen]
    freed = remove(store, chosen, everything=everything)
    state.output().result(
        "lora-reg/cache-rm/1",
        {"removed": chosen, "freed": freed},
        human=[f"{plural(len(chosen), 'version')} removed, {size(freed)} freed"],
        quiet=[f"{one.namespace}/{one.name}@{one.digest}" for one in chosen],
    )
