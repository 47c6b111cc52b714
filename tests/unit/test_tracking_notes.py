"""What a note may hold, which points are new, and whose fault an error is."""

import errno
import random

import pytest
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.databricks_pb2 import (
    BAD_REQUEST,
    INTERNAL_ERROR,
    INVALID_PARAMETER_VALUE,
    TEMPORARILY_UNAVAILABLE,
)

from orchestrator.tracking.faults import describe, is_puzzling, is_refusal
from orchestrator.tracking.notes import MetricsContent, Note, RefusedNoteError, content_of, halves, new_points

METRICS = {"values": {"loss": 1.0}, "step": 3, "time_ms": 5}
OPENED = {"name": "a", "tags": {}, "params": {}, "parent": None, "link": "a", "once": False}


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("open", OPENED),
        ("metrics", METRICS),
        ("artifact", {"file": "0a/x.png", "folder": "figures"}),
        ("finish", {"status": "KILLED"}),
        ("tags", {"a": "b"}),
        ("tags", {}),
    ],
)
def test_what_the_tracker_writes_is_read(kind: str, content: dict[str, object]) -> None:
    read = content_of(Note(kind, "expert-0a", content)).model_dump()
    assert {key: read[key] for key in content} == content


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("delete", {}),
        ("open", OPENED | {"params": {"a": 1}}),
        ("open", {}),
        ("metrics", METRICS | {"step": 2**63}),
        ("metrics", METRICS | {"step": "3"}),
        ("metrics", METRICS | {"values": {"loss": float("nan")}}),
        ("metrics", METRICS | {"values": [1]}),
        ("artifact", {"file": "0a/x", "folder": "../../other-run"}),
        ("artifact", {"file": "0a/x", "folder": "/etc"}),
        ("artifact", {"file": ["x"], "folder": None}),
        ("finish", {"status": "RUNNING"}),
        ("tags", {"a": {"b": "c"}}),
    ],
)
def test_what_it_never_writes_is_refused(kind: str, content: dict[str, object]) -> None:
    with pytest.raises(RefusedNoteError):
        content_of(Note(kind, "expert-0a", content))


@pytest.mark.parametrize("identity", ["a' OR 'b", "", "a`b", "x" * 300, "a\nb"])
def test_a_name_that_would_end_a_query_is_refused(identity: str) -> None:
    with pytest.raises(RefusedNoteError):
        content_of(Note("finish", identity, {"status": "KILLED"}))


def test_every_step_comes_once_however_often_its_record_does() -> None:
    draw = random.Random(0)
    there: dict[tuple[str, int], float] = {}
    for _ in range(200):
        steps = [draw.randrange(50) for _ in range(draw.randrange(1, 9))]
        notes = [
            MetricsContent(values={"loss": draw.random(), "rate": 1.0}, step=s, time_ms=0, once=True) for s in steps
        ]
        curves = {name: {step: one for (key, step), one in there.items() if key == name} for name in ("loss", "rate")}
        for point in new_points(notes, curves.__getitem__):
            assert (point.name, point.step) not in there
            there[point.name, point.step] = point.value
    assert set(there) == {(name, step) for name in ("loss", "rate") for step in range(50)}


def test_another_value_is_news_where_it_is_no_record() -> None:
    notes = [MetricsContent(values={"score": value}, step=0, time_ms=0) for value in (2.0, 2.0, 3.0, 3.0)]
    assert [point.value for point in new_points(notes, lambda _: {0: 2.0})] == [3.0]


def test_halves_are_the_whole() -> None:
    first, second = halves(Note("open", "a", OPENED | {"params": {"a": "1", "b": "2", "c": "3"}}))
    assert first.content["params"] | second.content["params"] == {"a": "1", "b": "2", "c": "3"}
    assert first.content["name"] == second.content["name"] == "a"
    assert halves(Note("tags", "a", {"a": "1", "b": "2"})) == [
        Note("tags", "a", {"a": "1"}),
        Note("tags", "a", {"b": "2"}),
    ]
    finish = Note("finish", "a", {"status": "KILLED"})
    assert halves(finish) == [finish]


INVALID, BAD, INTERNAL, BUSY = INVALID_PARAMETER_VALUE, BAD_REQUEST, INTERNAL_ERROR, TEMPORARILY_UNAVAILABLE


@pytest.mark.parametrize(
    ("error", "whose"),
    [
        (MlflowException("Names may only contain… 'no space left'", INVALID), "note"),
        (MlflowException("(psycopg2.errors.StringDataRightTruncation) value too long", BAD), "note"),
        (
            MlflowException("(psycopg2.errors.ReadOnlySqlTransaction) cannot INSERT in a read-only one", BAD),
            "store",
        ),
        (MlflowException("(sqlite3.OperationalError) database is locked", BUSY), "store"),
        (MlflowException("API request to http://h/api failed with exception refused", INTERNAL), "store"),
        (RestException({"error_code": "INTERNAL_ERROR", "message": "'NoneType' has no len()"}), "unclear"),
        (RestException({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "Run 3 not found"}), "note"),
        (ConnectionResetError("reset"), "store"),
        (OSError(errno.ENOSPC, "No space left on device"), "store"),
        (TypeError("int too big"), "unclear"),
    ],
)
def test_whose_fault_it_is(error: Exception, whose: str) -> None:
    found = "note" if is_refusal(error) else "unclear" if is_puzzling(error) else "store"
    assert found == whose


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('FATAL:  password authentication failed for user "ann"', "refuses the user or password"),
        ("API request failed with error code 401 != 200", "refuses the user or password"),
        ("(sqlite3.OperationalError) attempt to write a readonly database", "cannot be written"),
        ("(sqlite3.OperationalError) database or disk is full", "no space left"),
        ('FATAL:  database "mlflow" does not exist', "is not at"),
        ("Invalid Host header - possible DNS rebinding attack detected", "--allowed-hosts"),
        ("API request to http://ann:s3cret@h/api failed with exception x", "does not answer"),
    ],
)
def test_each_fault_of_the_store_has_its_own_sentence(text: str, words: str) -> None:
    sentence = describe(MlflowException(text), "postgresql://ann:s3cret@h/mlflow")
    assert words in sentence
    assert "s3cret" not in sentence
