"""Secrets are masked wherever a command may print them, and nothing else is."""

import time

import pytest

from orchestrator.plan.masking import masked

KEY_ID = "AKIA" + "IOSFODNN7EXAMPLE"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://ann:s3cret@host:5000/x", "http://***@host:5000/x"),
        ("postgresql+psycopg2://ann:p%40ss@db/m?sslmode=require", "postgresql+psycopg2://***@db/m?sslmode=require"),
        ("'https://ghp_token@host/x' and s3://k:v@b", "'https://***@host/x' and s3://***@b"),
        ("postgresql://ann:pa/ss@db/m", "postgresql://***@db/m"),
        ("postgresql://ann:p@ss@db/m", "postgresql://***@db/m"),
        ("postgresql://ann:pa?ss#w@db/m", "postgresql://***@db/m"),
        ("https://h/x?sig=abc%3D&v=2", "https://h/x?sig=***&v=2"),
        ("https://h/x?v=2&X-Amz-Signature=00ff&X-Amz-Security-Token=zz", "https://h/x?v=2&X-Amz-Signature=***&X-Amz-Security-Token=***"),
        ("s3:/k:v/w@b/x does not exist", "s3:/***@b/x does not exist"),
        ("gs://b?access_token=ya29.a", "gs://b?access_token=***"),
        (f"the key {KEY_ID} is unknown", "the key *** is unknown"),
    ],
)  # fmt: skip
def test_secrets_of_addresses_are_masked(text: str, shown: str) -> None:
    assert masked(text, {}) == shown
    assert masked(shown, {}) == shown


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:5000/#/experiments/1/runs/2",
        "http://host:5000/mail@example.org",
        "http://[::1]:8265/a@b",
        "s3://bucket/experts",
        "sqlite:////path/mlflow.db",
        "write to ann@example.org",
        "expert_00 [0, 250): training.images=3, key 8f2a",
        "https://h/x?step=3&monkey_business=1",
        "error: --address is 'ftp://x', but a cluster takes jobs at an address like http://HEAD:8265",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert masked(text, {"HOME": "/home/ann", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "experts"}) == text


def test_what_the_environment_holds_is_masked_anywhere() -> None:
    environment = {
        "RAY_AUTH_TOKEN": "0123456789ab",
        "AWS_SECRET_ACCESS_KEY": "wJalr/XUtn+FEMI",
        "MLFLOW_TRACKING_URI": "postgresql://ann:p%40ssw0rd@db/m",
        "MY_TOKEN": "on",  # too short to be told from words
    }
    said = "0123456789ab wJalr/XUtn+FEMI refused p@ssw0rd, p%40ssw0rd on db"
    assert masked(said, environment) == "*** *** refused ***, *** on db"


def test_a_text_of_nothing_but_addresses_takes_no_time() -> None:
    began_s = time.process_time()
    assert masked("s3://a:b" * 20_000, {}) == "s3://a:b" * 20_000
    assert time.process_time() - began_s < 5
