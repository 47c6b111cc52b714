"""What people bring, drawn at random (benchmarks/hostile_data.py): all of it comes out as it should, or is refused."""

import importlib
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from workloads.data.arrangement import arrange
from workloads.errors import DataError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FAMILIES = (
    "folders of classes and splits, packed or not", "a single split", "dataset.json", "WebDataset", "tables",
    "splits by row", "partitioned folders", "parts that are missing or doubled", "tables of labels beside pictures",
    "labels that are no class", "depth, turn, transparency, size", "what is no picture", "damaged files",
)  # fmt: skip


@pytest.fixture(scope="module")
def hostile_data() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("hostile_data")
        for name in [name for name in sys.modules if name.partition(".")[0] in {"hostile_data", "data_families"}]:
            del sys.modules[name]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_family_is_read_right_or_refused(
    family: str, hostile_data: ModuleType, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    assert set(FAMILIES) == set(hostile_data.FAMILIES)
    counts, seed = Counter[str](), 0
    while counts.total() < pytestconfig.getoption("--num-fuzzed") / len(FAMILIES):
        folder = tmp_path / str(seed)
        folder.mkdir()
        for number, judged in enumerate(hostile_data.judged_cases(family, seed, folder)):
            assert judged.outcome in hostile_data.RIGHT, (seed, number, judged)
            counts[judged.outcome] += 1
        seed += 1
    assert counts["read right"] > 0


def test_what_is_advised_of_a_folder_works_for_an_archive_too(tmp_path: Path) -> None:
    """A folder within a zip has no path that could be given."""
    pictures = [("set", split, kind, "0.png") for kind in "ab" for split in ("train", "test")]
    archive = tmp_path / "x.zip"
    for where, advice in ((tmp_path, "; give the path of"), (archive, "; unpack it and give the path of")):
        archive.write_bytes(b"")
        with pytest.raises(DataError, match=advice):
            arrange(pictures, set(), where=str(where), split=None, one_class=False)


def test_the_judge_sees_what_is_wrong(hostile_data: ModuleType, tmp_path: Path) -> None:
    cases = list(hostile_data.FAMILIES["a single split"](hostile_data.Draw((1, 1)), tmp_path))
    read, refused, _ = cases
    for wrong, why in (
        (read._replace(truth=None, told="x"), "should be refused"),
        (read._replace(truth=Counter({("bird", b""): 4})), "missing|classes"),
        (read._replace(told="never said"), "nothing said"),
        (read._replace(num_bad=1), "0 bad"),
        (refused._replace(truth=read.truth), "refused: "),
        (refused._replace(told="never said"), "refused, but not"),
        (read._replace(path=tmp_path / "nowhere"), "does not exist"),
    ):
        judged = hostile_data.judge(wrong, None)
        assert judged.outcome == "wrong"
        assert re.search(why, judged.detail), judged
