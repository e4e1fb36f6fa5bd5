"""An issuer of identity tokens on this machine: real keys, and a server of its discovery document and key set."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import get_default_algorithms

from lora_registry.cli import main
from tests.support.service import InProcess

AUDIENCE = "lora-registry"


class Key:
    """A signing key. algorithm: RS256, ES256, EdDSA …"""

    def __init__(self, kid: str, algorithm: str = "RS256", *, bits: int = 2048) -> None:
        self.kid, self.algorithm = kid, algorithm
        self.private: Any
        if algorithm.startswith(("RS", "PS")):
            self.private = rsa.generate_private_key(65537, bits)
        elif algorithm == "EdDSA":
            self.private = ed25519.Ed25519PrivateKey.generate()
        else:
            curves = {"ES256": ec.SECP256R1, "ES384": ec.SECP384R1, "ES512": ec.SECP521R1}
            self.private = ec.generate_private_key(curves[algorithm]())

    @property
    def jwk(self) -> dict[str, Any]:
        public = get_default_algorithms()[self.algorithm].to_jwk(self.private.public_key(), as_dict=True)
        return {**public, "kid": self.kid, "alg": self.algorithm, "use": "sig"}


class Issuer:
    """`documents` are what the server answers, by path; `requests` counts them."""

    def __init__(self) -> None:
        self.key = Key("first")
        self.documents: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.delay = 0.0
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.requests.append(self.path)
                time.sleep(issuer.delay)
                body = issuer.documents.get(self.path)
                self.send_response(404 if body is None else 200)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.documents["/.well-known/openid-configuration"] = json.dumps(
            {"issuer": self.url, "jwks_uri": f"{self.url}/jwks"}
        ).encode()
        self.publish(self.key)

    def publish(self, *keys: Key, **more: Any) -> None:
        self.documents["/jwks"] = json.dumps({"keys": [key.jwk for key in keys], **more}).encode()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def token(self, claims: dict[str, Any], *, key: Key | None = None, headers: dict[str, Any] | None = None) -> str:
        """A signed token, valid for five minutes unless the claims say otherwise; None leaves a claim or header out."""
        key = key or self.key
        now = int(time.time())
        whole = {"iss": self.url, "aud": AUDIENCE, "iat": now, "nbf": now, "exp": now + 300, "jti": uuid.uuid4().hex}
        whole = {name: value for name, value in {**whole, **claims}.items() if value is not None}
        head = {"kid": key.kid, **(headers or {})}
        head = {name: value for name, value in head.items() if value is not None}
        return jwt.encode(whole, key.private, algorithm=key.algorithm, headers=head)


@contextmanager
def issuer() -> Iterator[Issuer]:
    running = Issuer()
    try:
        yield running
    finally:
        running.stop()


def github(**claims: Any) -> dict[str, Any]:
    """What a workflow of `acme/sql-writer` carries on its main branch."""
    return {
        "sub": "repo:acme@65/sql-writer@74:ref:refs/heads/main",
        "repository": "acme/sql-writer",
        "repository_id": "74",
        "repository_owner": "acme",
        "repository_owner_id": "65",
        "ref": "refs/heads/main",
        "ref_type": "branch",
        "sha": "fa1e0c2b7d9b1fa1e0c2b7d9b1fa1e0c2b7d9b12",
        "event_name": "push",
        "workflow": "adapter",
        "workflow_ref": "acme/sql-writer/.github/workflows/adapter.yml@refs/heads/main",
        "job_workflow_ref": "acme/sql-writer/.github/workflows/adapter.yml@refs/heads/main",
        "run_id": "1001",
        "run_attempt": "1",
        "actor": "octocat",
        "runner_environment": "github-hosted",
        **claims,
    }


def gitlab(**claims: Any) -> dict[str, Any]:
    """What a job of the project `acme/sql-writer` carries on its main branch."""
    return {
        "sub": "project_path:acme/sql-writer:ref_type:branch:ref:main",
        "namespace_id": "72",
        "namespace_path": "acme",
        "project_id": "20",
        "project_path": "acme/sql-writer",
        "user_login": "sample-user",
        "pipeline_id": "574",
        "pipeline_source": "push",
        "job_id": "302",
        "ref": "main",
        "ref_type": "branch",
        "ref_path": "refs/heads/main",
        "ref_protected": "true",
        "sha": "714a629c0b401fdce83e847fc9589983fc6f46bc",
        "ci_config_ref_uri": "gitlab.example.com/acme/sql-writer//.gitlab-ci.yml@refs/heads/main",
        **claims,
    }


def kubernetes(namespace: str = "serving", account: str = "vllm", **claims: Any) -> dict[str, Any]:
    """What a projected service account token carries: the audience is a list."""
    return {
        "aud": [AUDIENCE],
        "sub": f"system:serviceaccount:{namespace}:{account}",
        "kubernetes.io": {
            "namespace": namespace,
            "node": {"name": "gpu-1", "uid": "b5e9"},
            "pod": {"name": f"{account}-0", "uid": "5e0c"},
            "serviceaccount": {"name": account, "uid": "14ee3fa4"},
            "warnafter": int(time.time()) + 240,
        },
        **claims,
    }


@contextmanager
def actions(made: Issuer, claims: dict[str, Any]) -> Iterator[dict[str, str]]:
    """What GitHub gives to a job with `id-token: write`: a URL that mints tokens, and its secret."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            allowed = self.headers.get("authorization") == "Bearer runner-secret"
            audience = parse_qs(urlsplit(self.path).query)["audience"][0]
            body = json.dumps({"count": 1, "value": made.token({**claims, "aud": audience})}).encode()
            self.send_response(200 if allowed else 403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/token?api-version=2.0"
    try:
        yield {"ACTIONS_ID_TOKEN_REQUEST_URL": url, "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "runner-secret"}
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def trust(running: InProcess, name: str, *arguments: str) -> str:
    """Add a rule, as an administrator does on the machine of the service."""
    result = CliRunner().invoke(main, ["trust", "add", name, *arguments], env=running.environment)
    assert result.exit_code == 0, result.output
    return result.output
