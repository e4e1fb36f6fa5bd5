"""The ASGI application: routers, dependencies, exception handlers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from anyio import CapacityLimiter
from litestar import Litestar, Response, Router, get
from litestar.datastructures import State
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.params import FromPath

from lora_contract import __version__, decoding
from lora_contract.errors import RegistryError
from lora_contract.wire.common import API
from lora_registry.access.routes import router as access
from lora_registry.auth.guards import caller_of
from lora_registry.auth.last_use import LastUse
from lora_registry.auth.rates import Rates
from lora_registry.auth.routes import router as auth
from lora_registry.bases.routes import router as bases
from lora_registry.context import Context
from lora_registry.db import revision
from lora_registry.derivations.routes import router as derivations
from lora_registry.events.routes import router as events
from lora_registry.gates.routes import router as gates
from lora_registry.http import problems
from lora_registry.http.admission import admit
from lora_registry.hub.routes import router as hub
from lora_registry.identity.routes import router as identity
from lora_registry.jobs.routes import router as jobs
from lora_registry.policies.routes import router as policies
from lora_registry.push.routes import router as push
from lora_registry.repositories.paths import RepositoryPath, VersionPath
from lora_registry.repositories.routes import router as repositories
from lora_registry.signatures.routes import router as signatures
from lora_registry.tags.routes import router as tags

THREADS = 24
MAX_BODY = 1024 * 1024
"""Maximum size of a JSON body in bytes; blobs are streamed and limited to their announced size."""


@get("/healthz", sync_to_thread=False, include_in_schema=False)
def healthz() -> dict[str, str]:
    """Liveness: the process responds."""
    return {"status": "ok", "version": __version__}


@get("/readyz", sync_to_thread=True, include_in_schema=False)
def readyz(ctx: Context) -> Response[dict[str, str]]:
    """Readiness: the database is at the newest schema and the blob store is reachable."""
    revision.require_current(ctx.db.engine)
    ctx.blobs.check()
    return Response({"status": "ready", "version": __version__})


def repository_path(namespace: FromPath[str], name: FromPath[str]) -> RepositoryPath:
    return RepositoryPath(namespace, name)


def version_path(repository: RepositoryPath, selector: FromPath[str]) -> VersionPath:
    return VersionPath(repository, selector)


def create_app(ctx: Context) -> Litestar:
    """Create the ASGI application over an open context, which it closes on shutdown."""

    last_use = LastUse(ctx)
    settings = ctx.settings
    rates = Rates(
        {
            "reads": settings.reads_per_minute,
            "writes": settings.writes_per_minute,
            "jobs": settings.jobs_per_minute,
            "failures": settings.failures_per_minute,
        }
    )

    @asynccontextmanager
    async def lifespan(_app: Litestar) -> AsyncIterator[None]:
        # The default executor has a thread per core plus four: a few slow requests would block all others.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="request"))
        yield
        last_use.close()
        ctx.checks.close()
        ctx.jobs.close()
        ctx.db.engine.dispose()

    def provide_context() -> Context:
        return ctx

    app = Litestar(
        route_handlers=[
            healthz,
            readyz,
            Router(
                API,
                route_handlers=[
                    auth,
                    access,
                    identity,
                    repositories,
                    bases,
                    tags,
                    signatures,
                    policies,
                    push,
                    derivations,
                    jobs,
                    gates,
                    events,
                ],
            ),
            hub,
        ],
        dependencies={
            "ctx": Provide(provide_context, sync_to_thread=False),
            "caller": Provide(caller_of, sync_to_thread=ctx.settings.auth != "none"),
            "repository": Provide(repository_path, sync_to_thread=False),
            "version": Provide(version_path, sync_to_thread=False),
        },
        exception_handlers={
            RegistryError: problems.registry_error,
            HTTPException: problems.http_error,
            Exception: problems.any_error,
        },
        before_request=admit,
        lifespan=[lifespan],
        openapi_config=OpenAPIConfig(
            title="lora-reg", version=__version__, path="/schema", render_plugins=[JsonRenderPlugin()]
        ),
        request_max_body_size=MAX_BODY,
        state=State({"ctx": ctx, "last_use": last_use, "rates": rates, "large_bodies": CapacityLimiter(1)}),
        logging_config=None,
    )
    # Litestar decodes bodies and parameters itself, while threads of requests decode into the same structs.
    decoding.complete_all({"lora_contract", "lora_registry"})
    return app
