"""A protocol's hash holds everything a score depends on and nothing else; unlike scores are not compared."""

import json
from dataclasses import asdict
from typing import Any

import pytest

from workloads.config.evaluation import ProtocolConfig, SamplingConfig
from workloads.errors import ConfigError
from workloads.evaluation.protocol import (
    Score,
    comparable,
    describe_protocol,
    protocol_hash,
    require_comparable,
    samples_key,
)

BASE: dict[str, Any] = {
    "name": "usual",
    "extractor": "inception",
    "num_samples": 1000,
    "batch_size": 100,
    "sampling": {"sampler": "dpm++", "num_steps": 20},
}
OTHER_VALUES: dict[str, Any] = {"num_samples": 999, "batch_size": 50, "seed": 1}
OTHER_SAMPLING: dict[str, Any] = {
    "sampler": {"sampler": "ddim"},
    "num_steps": {"num_steps": 21},
    "eta": {"sampler": "ddim", "eta": 0.5},
    "guidance_scale": {"guidance_scale": 1.5},
    "guidance_channels": {"guidance_channels": 3},
    "variance": {"variance": "fixed"},
    "options": {"sampler": "DDIMScheduler", "options": {"steps_offset": 1}},
}
NOT_IN_THE_HASH = {
    *("name", "inception_weights", "inception_sha256", "dinov2_weights", "dinov2_sha256"),
    *("resize", "reference_statistics", "metrics"),
}
"""Names and paths; the extractor itself enters by the content of its weights and its resizing, a file by its content.

Other metrics change nothing of the distance."""


def describe(protocol: ProtocolConfig, **changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "score_name": "fid",
        "extractor": {"name": "e", "weights_sha256": "aa"},
        "reference_fingerprint": "ff",
        "num_reference_images": 10,
        "torch_fidelity_version": "0.4.0",
    }
    return describe_protocol(protocol, **(fields | changes))


def hash_of(raw: dict[str, Any], **changes: Any) -> str:
    return protocol_hash(describe(ProtocolConfig.model_validate(BASE | raw), **changes))


def score(value: float, **raw: Any) -> Score:
    described = describe(ProtocolConfig.model_validate(BASE | raw))
    return Score("fid", value, described, protocol_hash(described), described["num_samples"])


def test_names_and_paths_do_not_enter_the_hash() -> None:
    assert hash_of({"name": "mine", "inception_weights": "/a/b", "inception_sha256": "0" * 64}) == hash_of({})


@pytest.mark.parametrize("field", sorted(ProtocolConfig.model_fields.keys() - NOT_IN_THE_HASH))
def test_every_other_field_enters_the_hash(field: str) -> None:
    if field == "sampling":
        assert OTHER_SAMPLING.keys() == SamplingConfig.model_fields.keys()
        hashes = {hash_of({"sampling": BASE["sampling"] | change}) for change in OTHER_SAMPLING.values()}
        assert len(hashes | {hash_of({})}) == len(OTHER_SAMPLING) + 1
    elif field == "extractor":
        assert hash_of({}, extractor={"name": "e", "weights_sha256": "bb"}) != hash_of({})
    else:
        assert hash_of({field: OTHER_VALUES[field]}) != hash_of({})


@pytest.mark.parametrize(
    "change",
    [
        {"reference_fingerprint": "00"},
        {"num_reference_images": 11},
        {"torch_fidelity_version": "0.5.0"},
        {"score_name": "fd-fashion-cnn"},
    ],
    ids=str,
)
def test_the_reference_and_the_library_enter_the_hash(change: dict[str, Any]) -> None:
    assert hash_of({}, **change) != hash_of({})


def test_scores_under_one_protocol_compare() -> None:
    assert comparable(score(3.0), score(4.0))
    require_comparable(score(3.0), score(4.0))


def test_scores_under_two_protocols_are_refused_with_what_differs() -> None:
    a, b = score(3.0), score(4.0, sampling={"sampler": "dpm++", "num_steps": 50}, seed=7)
    assert not comparable(a, b)
    with pytest.raises(ConfigError) as raised:
        require_comparable(a, b)
    assert "sampling.num_steps is 20 and 50" in str(raised.value)
    assert "seed is 0 and 7" in str(raised.value)
    assert "batch_size" not in str(raised.value)


def test_a_score_survives_json() -> None:
    original = score(3.25)
    assert Score(**json.loads(json.dumps(asdict(original)))) == original
    assert protocol_hash(json.loads(json.dumps(original.protocol))) == original.protocol_hash


def key_of(ensemble: str = "e", **raw: Any) -> str:
    return samples_key(ProtocolConfig.model_validate(BASE | raw), ensemble)


def test_samples_are_shared_exactly_where_their_batches_are_the_same() -> None:
    assert key_of(num_samples=200) == key_of(num_samples=1000)  # whole batches of 100
    assert key_of(num_samples=250) != key_of(num_samples=200)
    assert key_of(num_samples=250) != key_of(num_samples=350)
    assert key_of(seed=1) != key_of()
    assert key_of(batch_size=50) != key_of()
    assert key_of(sampling={"sampler": "ddim"}) != key_of()
    assert key_of("other weights") != key_of()
