"""What two runs have in common and what not: descriptions, scores, weights."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from workloads.ensemble import EnsembleIndex
from workloads.evaluation.estimates import Estimate, tied
from workloads.pipeline import read_scores
from workloads.places import require_ensemble, results_of
from workloads.sealed import read_json

NEXT_STEP = "run rememe train again, which writes it anew"


@dataclass(frozen=True)
class ScorePair:
    """Two scores under one protocol."""

    name: str
    protocol: str
    protocol_hash: str
    left: float
    right: float
    is_tie: bool | None
    """Whether the difference lies inside its 95 % interval; None without intervals, or if one is not trustworthy."""

    stderrs: tuple[float | None, float | None] = (None, None)
    """Of left and right, over the drawn samples."""

    doubts: tuple[Sequence[str], Sequence[str]] = ((), ())
    """Why they are not to be trusted."""

    @property
    def told(self) -> list[str]:
        """Both, as they are shown: with half of the 95 % interval, and whether they can be trusted."""
        sides = zip((self.left, self.right), self.stderrs, self.doubts, strict=True)
        return [
            f"{value:.4g}{Estimate(value, stderr).spread()}{' (not trustworthy)' if doubts else ''}"
            for value, stderr, doubts in sides
        ]


@dataclass(frozen=True)
class WeightsPair:
    """The weights of one expert, or of all of a remix, by their SHA-256; None where a run has no such expert."""

    expert: int
    left: str | None
    right: str | None

    @property
    def is_same(self) -> bool:
        """To the last bit."""
        return self.left == self.right


@dataclass(frozen=True)
class Difference:
    """What differs between two runs."""

    left: str
    right: str
    configuration: dict[str, tuple[Any, Any]]
    """By dotted key, where they differ; None where a run lacks the key."""

    scores: list[ScorePair]
    weights: list[WeightsPair]

    def to_json(self) -> dict[str, Any]:
        """What `rememe diff --json` prints."""
        weights = [asdict(pair) | {"is_same": pair.is_same} for pair in self.weights]
        configuration = {key: list(values) for key, values in self.configuration.items()}
        return asdict(self) | {"configuration": configuration, "weights": weights}


def difference_of(left: Path, right: Path) -> Difference:
    """Of two runs by their directories. ConfigError if one is no trained run, DamagedFileError if damaged."""
    runs = (left, right)
    indices = [_index_of(run) for run in runs]
    flat = [_flat(index.config.model_dump(mode="json")) for index in indices]
    differing = {
        key: (flat[0].get(key), flat[1].get(key))
        for key in dict.fromkeys([*flat[0], *flat[1]])
        if flat[0].get(key) != flat[1].get(key)
    }
    return Difference(
        left=runs[0].name,
        right=runs[1].name,
        configuration=differing,
        scores=_scores(*map(_measured, runs, indices)),
        weights=_weights(*(index.weights_sha256 for index in indices)),
    )


def _index_of(run: Path) -> EnsembleIndex:
    return read_json(require_ensemble(run).index, EnsembleIndex.model_validate, NEXT_STEP)


def _measured(run: Path, index: EnsembleIndex) -> dict[str, dict[str, Any]]:
    return read_scores(results_of(require_ensemble(run).path).scores) or index.scores


def _flat(node: Any, path: str = "") -> dict[str, Any]:
    """Leaves by dotted key; an empty section is a leaf."""
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    flat: dict[str, Any] = {}
    for key, value in items:
        flat |= _flat(value, f"{path}.{key}" if path else str(key))
    return flat or {path: node}


def _scores(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[ScorePair]:
    pairs = []
    for key in left.keys() & right.keys():
        a, b = left[key], right[key]
        estimates = [Estimate(one["value"], one.get("stderr")) for one in (a, b)]
        stderrs = (estimates[0].stderr, estimates[1].stderr)
        doubts = (a.get("doubts", []), b.get("doubts", []))
        is_tie = None if None in stderrs or any(doubts) else tied(*estimates)
        named = (a["name"], str(a["protocol"].get("name")), key)
        pairs.append(ScorePair(*named, a["value"], b["value"], is_tie, stderrs, doubts))
    return sorted(pairs, key=lambda pair: pair.protocol)


def _weights(left: Sequence[str], right: Sequence[str]) -> list[WeightsPair]:
    longest = range(max(len(left), len(right)))
    return [
        WeightsPair(index, *(side[index] if index < len(side) else None for side in (left, right))) for index in longest
    ]


def shown(value: Any) -> str:
    """A value of a description on one line."""
    return json.dumps(value) if not isinstance(value, str) else value
