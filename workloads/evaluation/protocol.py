"""What a score depends on, and when two scores may be compared. Imports no torch, so tables of scores stay cheap."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from workloads.config.evaluation import ProtocolConfig
from workloads.errors import ConfigError
from workloads.evaluation.estimates import Estimate
from workloads.sealed import content_hash

MAX_DIFFERENCES = 4
"""Named in an error message."""


@dataclass(frozen=True)
class Score:
    """A number and everything it depends on; `protocol` is plain JSON."""

    name: str
    """fid, or fd-fashion-cnn: the same distance between features of another network."""

    value: float
    """Lower is better."""

    protocol: dict[str, Any]
    """What the value depends on besides the ensemble."""

    protocol_hash: str
    """Of `protocol` without its name."""

    num_samples: int
    """Generated images."""

    others: dict[str, float] = field(default_factory=dict)
    """The protocol's other metrics by name: inception_score, precision, recall, kid, sfid."""

    others_protocol: dict[str, Any] = field(default_factory=dict)
    """What those depend on besides `protocol`: which reference images, and how many."""

    doubts: list[str] = field(default_factory=list)
    """Why the value is not to be trusted; with any, it is shown as such and ranks behind all others."""

    stderr: float | None = None
    """Standard error over the drawn samples; that of training is not in it. None in files of earlier versions."""

    others_stderr: dict[str, float] = field(default_factory=dict)
    """Of the others."""

    unavailable: dict[str, str] = field(default_factory=dict)
    """Why metrics that were asked for cannot be had."""

    @property
    def estimate(self) -> Estimate:
        """The value with its error."""
        return Estimate(self.value, self.stderr)

    @property
    def other_estimates(self) -> dict[str, Estimate]:
        """The others with theirs."""
        return {name: Estimate(value, self.others_stderr.get(name)) for name, value in self.others.items()}

    @property
    def half_width(self) -> str:
        """Half of the value's 95 % interval, as it stands behind the value; empty if it is not known."""
        return self.estimate.spread()

    @property
    def other_words(self) -> list[str]:
        """Each of the other metrics with half of its 95 % interval, or why there is none."""
        found = [f"{name} {one.value:.4g}{one.spread()}" for name, one in self.other_estimates.items()]
        return found + [f"{name} not available: {reason}" for name, reason in self.unavailable.items()]

    @property
    def warning(self) -> str:
        """The doubts in a sentence; empty if there are none."""
        return f"not trustworthy: {'; '.join(self.doubts)}" if self.doubts else ""


def describe_protocol(
    protocol: ProtocolConfig,
    *,
    score_name: str,
    extractor: Mapping[str, Any],
    reference_fingerprint: str,
    num_reference_images: int | None,
    torch_fidelity_version: str,
) -> dict[str, Any]:
    """Everything a score depends on but the ensemble: by content, so paths to weights and data are left out."""
    return {
        "name": protocol.name,
        "score": score_name,
        "extractor": dict(extractor),
        "reference": {"fingerprint": reference_fingerprint, "num_images": num_reference_images},
        "num_samples": protocol.num_samples,
        "batch_size": protocol.batch_size,
        "seed": protocol.seed,
        "sampling": protocol.sampling.model_dump(mode="json"),
        "torch_fidelity": torch_fidelity_version,
    }


def protocol_hash(protocol: Mapping[str, Any]) -> str:
    """16 hex digits, equal for equal protocols whatever they are called."""
    return content_hash({key: value for key, value in protocol.items() if key != "name"})[:16]


def samples_key(protocol: ProtocolConfig, ensemble_fingerprint: str) -> str:
    """Key of a set of generated images: equal keys may share a folder, other keys must not.

    Protocols that differ in the number of whole batches share it, so fid50k goes on where fid10k ended.
    """
    whole_batches = protocol.num_samples % protocol.batch_size == 0
    return content_hash(
        {
            "ensemble": ensemble_fingerprint,
            "num_samples": None if whole_batches else protocol.num_samples,
            "batch_size": protocol.batch_size,
            "seed": protocol.seed,
            "sampling": protocol.sampling.model_dump(mode="json"),
        }
    )[:16]


def comparable(a: Score, b: Score) -> bool:
    """Whether the two were measured in the same way."""
    return a.protocol_hash == b.protocol_hash


def require_comparable(a: Score, b: Score) -> None:
    """Raise ConfigError that names what differs, unless the two were measured in the same way."""
    if comparable(a, b):
        return
    left, right = _flatten(a.protocol), _flatten(b.protocol)
    differing = [key for key in sorted(left.keys() | right.keys()) if left.get(key) != right.get(key) and key != "name"]
    shown = [f"{key} is {left.get(key)} and {right.get(key)}" for key in differing[:MAX_DIFFERENCES]]
    if len(differing) > MAX_DIFFERENCES:
        shown.append(f"and {len(differing) - MAX_DIFFERENCES} more")
    raise ConfigError(
        f"{a.name} {a.value:.4g} ({a.protocol.get('name')}) and {b.name} {b.value:.4g} ({b.protocol.get('name')}) "
        f"cannot be compared: {'; '.join(shown)}; evaluate both under one protocol"
    )


def _flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
