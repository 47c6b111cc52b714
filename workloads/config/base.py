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
    text = json.dumps(payload, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
