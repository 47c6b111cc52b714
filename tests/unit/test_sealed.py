"""JSON that shows whether it is as it was written."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads.errors import DamagedFileError
from workloads.sealed import CHECKSUM, num_damaged_lines, read_json, read_lines, sealed, unsealed, write_json

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)


@given(content=st.dictionaries(st.text().filter(lambda key: key != CHECKSUM), PLAIN))
def test_what_is_sealed_comes_back(content: dict[str, Any]) -> None:
    assert unsealed(json.loads(json.dumps(sealed(content)))) == content
    assert unsealed(content) == content  # as earlier versions wrote it


def test_layout_does_not_count_and_content_does(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"loss": math.nan, "steps": (1, 2)})
    file.write_text(json.dumps(json.loads(file.read_text()), separators=(",", ":"), sort_keys=True))
    assert read_json(file, dict, "x")["steps"] == [1, 2]
    whole = file.read_text()
    for changed in (
        whole.replace("1,2", "1,3"),
        whole.replace("steps", "stops"),
        whole[:-3],
        "",
        "null",
        "[]",
        "1e999",
    ):
        file.write_text(changed)
        with pytest.raises(DamagedFileError, match=r"a\.json is damaged: .*; make it again$") as raised:
            read_json(file, dict, "make it again")
        assert "\n" not in str(raised.value)


def test_every_flipped_bit_shows_or_changes_nothing(tmp_path: Path) -> None:
    file, content = tmp_path / "a.json", {"name": "x", "loss": 1e-05, "jobs": [{"key": "0a", "images": 64}]}
    write_json(file, content)
    whole, harmless = file.read_bytes(), 0
    for place in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[place // 8] ^= 1 << place % 8
        file.write_bytes(changed)
        try:
            assert read_json(file, dict, "x") == content
            harmless += 1
        except DamagedFileError:
            continue
    assert harmless <= 1  # 1e-05 and 1E-05


def test_damaged_lines_are_counted_and_a_torn_one_is_not(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    lines = [json.dumps(sealed({"step": step})) + "\n" for step in range(4)]
    lines[1] = lines[1].replace('"step": 1', '"step": 7')
    file.write_text("".join(lines)[:-5])
    assert read_lines(file, dict) == [{"step": 0}, {"step": 2}]
    assert num_damaged_lines(file) == 1
