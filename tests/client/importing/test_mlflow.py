"""Import of a real MLflow server, filled by its own client."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import httpx2
import pytest

from tests.support.command import Home, fresh, variant
from tests.support.envs import ensure_env
from tests.support.processes import free_ports, start, stop, wait_until

MLFLOW = ["mlflow==3.17.2"]
FILL = """
import sys, mlflow
from mlflow import MlflowClient
first, second, other = sys.argv[1:]
client = MlflowClient()
client.create_registered_model("sql-writer")
for folder, rate in ((first, 0.1), (second, 0.2)):
    with mlflow.start_run(run_name="train") as run:
        mlflow.log_params({"learning_rate": rate, "seed": 7})
        mlflow.log_metric("loss", 3 * rate)
        mlflow.log_artifacts(folder, "adapter")
    client.create_model_version("sql-writer", f"{run.info.artifact_uri}/adapter", run.info.run_id)
client.set_registered_model_alias("sql-writer", "champion", "1")
client.create_registered_model("other")
with mlflow.start_run() as run:
    mlflow.log_artifacts(other, "model/peft")
    mlflow.log_text("x", "model/MLmodel")
client.create_model_version("other", f"{run.info.artifact_uri}/model", run.info.run_id)
client.create_registered_model("forest")
with mlflow.start_run() as run:
    mlflow.log_text("x", "model.txt")
client.create_model_version("forest", run.info.artifact_uri, run.info.run_id)
"""


class Server:
    """A server, and its own client as a program."""

    def __init__(self, url: str, python: Path) -> None:
        self.url, self._python = url, python

    def client(self, script: str, *arguments: Path) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        subprocess.run(
            [self._python, "-c", script, *map(str, arguments)],
            env=environment | {"MLFLOW_TRACKING_URI": self.url, "MLFLOW_DISABLE_TELEMETRY": "true"},
            check=True,
            stdout=subprocess.DEVNULL,
        )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    programs = ensure_env("mlflow", MLFLOW)
    folder = tmp_path_factory.mktemp("mlflow")
    (port,) = free_ports(1)
    command = [
        *(str(programs / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts")),
    ]
    environment = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    process = start(command, log=folder / "log", environment=environment, folder=folder)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: _answers(f"{url}/health"), what="mlflow", log=folder / "log")
        made = Server(url, programs / "python")
        made.client(FILL, *(variant(folder / f"adapter-{seed}", seed=seed) for seed in (41, 42, 43)))
        yield made
    finally:
        stop(process)


def test_models_come_with_their_aliases_and_runs(home: Home, server: Server) -> None:
    namespace = fresh()
    with mock.patch.dict(os.environ, {"MLFLOW_TRACKING_URI": server.url}):
        said = home.run("import", "mlflow:", "--to", namespace, "--json")
        rows = {row["source"]: row for row in said.document["rows"]}
        assert {source: row["outcome"] for source, row in rows.items()} == {
            "mlflow:sql-writer/1": "created",
            "mlflow:sql-writer/2": "created",
            "mlflow:other/1": "created",
            "mlflow:forest/1": "failed",
        }
        assert said.status == 3
        assert "holds 0 folders with an adapter" in rows["mlflow:forest/1"]["reason"]
        first = home.json("show", f"{namespace}/sql-writer:champion")
        assert (first["number"], first["meta"]["mlflow.param.learning_rate"], first["meta"]["mlflow.run_name"]) == (
            1,
            "0.1",
            "train",
        )
        assert float(first["meta"]["mlflow.metric.loss"]) == pytest.approx(0.3)
        assert len(first["meta"]["mlflow.run_id"]) == 32
        assert home.json("show", f"{namespace}/other")["meta"]["import.source"] == "mlflow:other/1"
        # An alias that moved there moves here; nothing else happens.
        alias = {"name": "sql-writer", "alias": "champion", "version": "2"}
        httpx2.post(f"{server.url}/api/2.0/mlflow/registered-models/alias", json=alias).raise_for_status()
        again = home.json("import", "mlflow:sql-writer", "--to", namespace)["rows"]
        assert [row["outcome"] for row in again] == ["already imported"] * 2
        assert sum(row["sent"] + row["received"] for row in again) == 0
        assert home.json("show", f"{namespace}/sql-writer:champion")["number"] == 2


def test_what_mlflow_answers_is_said(home: Home, server: Server) -> None:
    said = home.run("import", "mlflow:nothing", "--endpoint", server.url, "--to", fresh())
    assert said.status == 3, said.err
    assert "answered 404" in said.err
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    with mock.patch.dict(os.environ, environment, clear=True):
        said = home.run("import", "mlflow:x")
    assert said.status == 2
    assert "MLFLOW_TRACKING_URI" in said.err


def _answers(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=2).status_code == 200
    except httpx2.TransportError:
        return False
