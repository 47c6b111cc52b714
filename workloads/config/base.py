"""What every part of the run description has in common."""

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict


class StrictConfig(BaseModel):
    """Frozen, rejects unknown keys, and documents each field by the string below it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def content_hash(payload: Any) -> str:
    """SHA-256 (hex) of JSON-like data, independent of the order of keys."""
    # Never otherwise: the same data in another layout would be another key.
    text = json.dumps(payload, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def merge(base: Any, update: Any) -> Any:
    """Nested mappings merged key by key; anything else is replaced. A new `kind` starts its section afresh."""
    if not (isinstance(base, dict) and isinstance(update, dict)):
        return update
    if "kind" in update and update["kind"] != base.get("kind"):
        return update
    return base | {key: merge(base.get(key), value) for key, value in update.items()}
