"""Import of a bucket of a real S3 server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from tests.support.command import Home, fresh, variant
from tests.support.front import Answer, Front
from tests.support.s3 import BUCKET, REGION, S3Server


@pytest.fixture
def bucket(ministack_server: S3Server, tmp_path: Path) -> Iterator[str]:
    """A prefix with two adapters and what lies beside them."""
    prefix = fresh("bucket")
    client = ministack_server.client(ministack_server.settings())
    for name, seed in (("team/one", 31), ("two", 32)):
        for path in variant(tmp_path / name.replace("/", "-"), seed=100 + seed).iterdir():
            client.put_object(Bucket=BUCKET, Key=f"{prefix}/{name}/{path.name}", Body=path.read_bytes())
    client.put_object(Bucket=BUCKET, Key=f"{prefix}/two/optimizer.pt", Body=b"PK\x03\x04")
    client.put_object(Bucket=BUCKET, Key=f"{prefix}/data.csv", Body=b"1,2")
    with mock.patch.dict(
        os.environ,
        {
            "AWS_ACCESS_KEY_ID": ministack_server.access_key,
            "AWS_SECRET_ACCESS_KEY": ministack_server.secret_key,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ENDPOINT_URL": ministack_server.http,
        },
    ):
        yield f"s3://{BUCKET}/{prefix}"


def test_a_bucket_comes_once(home: Home, bucket: str) -> None:
    namespace = fresh()
    rows = {row["source"]: row for row in home.json("import", bucket, "--to", namespace)["rows"]}
    assert {source: row["outcome"] for source, row in rows.items()} == {
        f"{bucket}/team/one": "created",
        f"{bucket}/two": "created",
    }
    assert rows[f"{bucket}/two"]["left_out"] == ["optimizer.pt"]
    assert rows[f"{bucket}/team/one"]["target"] == f"{namespace}/team-one:v1"
    again = home.json("import", f"{bucket}/", "--to", namespace)["rows"]
    assert [row["outcome"] for row in again] == ["already imported"] * 2
    assert sum(row["received"] + row["sent"] for row in again) == 0


def test_a_cut_download_resumes_where_it_was(home: Home, bucket: str, ministack_server: S3Server) -> None:
    asked: list[str] = []

    def harm(answer: Answer) -> None:
        if answer.path.endswith("/adapter_model.safetensors"):
            asked.append(answer.asked.get("range", "whole"))
            if len(asked) == 1:
                answer.cut = 1000

    with Front(ministack_server.http, harm) as front:
        row = home.json("import", f"{bucket}/two", "--endpoint", front.url, "--to", fresh())["rows"][0]
    assert row["outcome"] == "created"
    assert asked == ["whole", "bytes=1000-"]


def test_what_a_bucket_answers_is_said(home: Home, bucket: str) -> None:
    said = home.run("import", f"s3://{fresh('none')}/x", "--to", fresh())
    assert said.status == 3
    assert "S3 answered 404" in said.err
    said = home.run("import", f"{bucket}/empty", "--to", fresh())
    assert said.status == 3
    assert "holds no adapter" in said.err


def test_without_boto3_the_extra_is_named(home: Home) -> None:
    with mock.patch.dict("sys.modules", {"boto3": None}):
        said = home.run("import", "s3://bucket/x")
    assert said.status == 2
    assert "lora-reg[s3]" in said.err
