"""What is said of keys is what the classes do, and every key has something to be said."""

import re
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from orchestrator.search.study.keys import ROOTS, all_keys, explain_key, keys_below, readers_of
from workloads.config.base import StrictConfig
from workloads.config.explain import model_members
from workloads.config.reference import key_of
from workloads.config.text import parse_yaml
from workloads.errors import ConfigError


def classes() -> dict[str, type[StrictConfig]]:
    found: dict[str, type[StrictConfig]] = {}
    waiting: list[Any] = [*ROOTS.values()]
    while waiting:
        model = waiting.pop()
        if model.__name__ in found:
            continue
        found[model.__name__] = model
        for field in model.model_fields.values():
            waiting += model_members(field.annotation)
            for part in (field.annotation, *getattr(field.annotation, "__args__", ())):
                waiting += [one for inner in getattr(part, "__args__", ()) for one in model_members(inner)]
    return found


CLASSES = classes()
FIELDS = [(model, name) for model in CLASSES.values() for name in model.model_fields if name != "kind"]


def test_all_classes_are_found_by_both() -> None:
    assert {"MemeExpert", "DiTConfig", "HeldOutSpec", "ProtocolConfig"} < CLASSES.keys()
    assert {key.owner for keys in all_keys().values() for key in keys} == CLASSES.keys() - {"Single"}  # has no key


@pytest.mark.parametrize(("model", "name"), FIELDS, ids=lambda part: getattr(part, "__name__", part))
def test_a_key_is_explained_as_it_is_checked(model: type[StrictConfig], name: str) -> None:
    key, field = key_of(model, name), model.model_fields[name]
    assert len(key.meaning) > 1, "say below the field what it means"
    if field.is_required():
        assert key.default == "required"
    elif isinstance(default := field.get_default(call_default_factory=True), bool | int | float | str | None):
        assert parse_yaml(key.default, "") == default
    takes: TypeAdapter[Any] = TypeAdapter(field.rebuild_annotation())
    for words, limit in re.findall(r"(at least|at most|above|below) ([\d.,]*\d)(?![^,]* of length)", key.type):
        if key.type.startswith(("list", "text", "mapping")):
            continue
        edge = float(limit.replace(",", ""))
        step = 1 if "whole" in key.type else 1e-9
        outside = {"at least": edge - step, "at most": edge + step * max(edge, 1), "above": edge, "below": edge}[words]
        with pytest.raises(ValidationError):
            takes.validate_python(int(outside) if step == 1 else outside)
        inside = edge if words in {"at least", "at most"} else edge + (1e-6 if words == "above" else -1e-6)
        takes.validate_python(int(inside) if step == 1 else inside)
    assert ("null" in key.type.split(" or ")) == _takes_null(takes)


def _takes_null(takes: "TypeAdapter[Any]") -> bool:
    try:
        takes.validate_python(None)
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize(
    ("word", "paths"),
    [
        ("training.batch_size", ["training.batch_size"]),
        ("training.ema", ["training.ema_halflife_images", "training.ema_rampup"]),
        ("ema_rampup", ["training.ema_rampup"]),
        ("strategy.experts.2.specialisation", ["strategy.experts.*.specialisation"]),
        ("ladder.brief", ["ladder.brief"]),
        ("budget_images", ["budget_images"]),
    ],
)
def test_a_key_is_found(word: str, paths: list[str]) -> None:
    assert [one.key.path for one in explain_key(word)] == paths


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("training.bach_size", "did you mean training.batch_size?"),
        ("batchsize", "did you mean training.batch_size?"),
        ("specialisation", "end of several keys: strategy.experts.*.specialisation, strategy.specialisation"),
        ("qqqq", "rememe explain lists the sections"),
    ],
)
def test_a_wrong_name_offers_the_nearest(word: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        explain_key(word)


def test_what_is_said_of_one_key() -> None:
    (found,) = explain_key("strategy.prior_strength")
    said = found.to_json()
    assert said["of"] == "a run"
    assert said["kinds"] == ["remix"]
    assert (said["type"], said["default"], said["source"]) == ("number at least 0", "0.0001", "arXiv:2412.05628")
    assert [explain_key(name)[0].key.unit for name in ("watchdog_s", "data.image_size", "cache_size_gb")] == [
        "s",
        "pixels",
        "GB",
    ]
    assert "workloads.training.state" in readers_of(explain_key("training.ema_halflife_images")[0].key)
    assert {one.key.path for one in keys_below("")} == set(ROOTS["a run"].model_fields)
