"""The text of descriptions: values as YAML 1.2 has them, and refusals of what stands for something else."""

import time

import pytest

from workloads.config.text import parse_yaml
from workloads.errors import ConfigError

VALUES = {
    "1e6": 1_000_000.0, "1.0e-3": 0.001, "017": 17, "-017": -17, "0o17": 15, "0x1F": 31, "1_000": 1000, "1:30": "1:30",
    "no": "no", "off": "off", "true": True, "False": False, "~": None, "": None, "null": None, "'1'": "1",
    "2024-99-99": "2024-99-99", "2024-01-01": "2024-01-01", "0x_": "0x_", ".5": 0.5, "5.": 5.0, "[1, a]": [1, "a"],
    "{1: 2}": {"1": 2}, "<<": "<<", "=": "=", "9223372036854775807": 2**63 - 1, "ünï": "ünï", "1e-999": 0.0,
}  # fmt: skip


@pytest.mark.parametrize("text", VALUES)
def test_values_are_what_they_look_like(text: str) -> None:
    found = parse_yaml(f"x: {text}", "f")["x"]
    assert found == VALUES[text]
    assert type(found) is type(VALUES[text])


def test_merge_keys_and_aliases_stay() -> None:
    text = "base: &b {k: 1, j: [1, 2]}\nown: {<<: *b, k: 3}\nseveral: {<<: [{a: 1}, {a: 2, b: 3}]}\nagain: *b"
    base = {"k": 1, "j": [1, 2]}
    assert parse_yaml(text, "f") == {
        "base": base, "own": {"k": 3, "j": [1, 2]}, "several": {"a": 1, "b": 3}, "again": base,
    }  # fmt: skip


BOMB = "\n".join(["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)])

REFUSED = {
    "a: 1\nb: 2\na: 3": "says a twice (line 3)",
    "d: {x: 1, x: 2}": "says x twice",
    "&a [*a]": "contains itself",
    "x: &a {y: *a}": "contains itself",
    BOMB: "more than 50,000 values",
    "x: " + "[ " * 500: "nested more than 40 deep",
    "x: " + "[" * 50_000: "depth",
    "x: " + "9" * 5000: "has 5000 digits, which is too large",
    "x: 9223372036854775808": "is too large",
    "x: 1e999": "is too large",
    "x: !!python/object/apply:os.system [ls]": "python/object/apply:os.system does not fit",
    "x: !!timestamp 2024-99-99": "timestamp does not fit",
    "x: !!int abc": "does not fit",
    "x: !!map [1]": "does not fit",
    "? [a]\n: 1": "a key that is no word",
    'x: "\\0"': "a character that no name or path can have",
    "x: *nowhere": "undefined alias",
    "x: 1\n---\ny: 2": "single document",
    "x: [": "is not valid YAML",
    "x: {<<: 1}": "<< takes in mappings",
    "x: " + "a" * 2_000_000: "2,000,003 characters long",
}


@pytest.mark.parametrize("text", REFUSED, ids=list(REFUSED.values()))
def test_what_stands_for_something_else_is_refused_at_once(text: str) -> None:
    began_s = time.perf_counter()
    with pytest.raises(ConfigError) as raised:
        parse_yaml(text, "file.yaml")
    assert REFUSED[text] in str(raised.value)
    assert str(raised.value).startswith("file.yaml")
    assert "\n" not in str(raised.value)
    assert time.perf_counter() - began_s < 5
