"""What a command says of its results, and where they may go."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from shlex import split

import pytest
from PIL import Image

from orchestrator.runs.analysis.difference import ScorePair
from orchestrator.runs.data import used_with
from orchestrator.runs.surroundings import require_makeable, require_places
from workloads.config.data import FolderData
from workloads.config.load import load_config
from workloads.data.prepare import check, prepare
from workloads.errors import ConfigError


def pictures(folder: Path, classes: tuple[str, ...]) -> Path:
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        Image.new("L", (8, 8), 60 * number).save(folder / name / "one.png")
    return folder


@pytest.mark.parametrize("name", ["photos", "a, b", "it's {mine}: #1"])
@pytest.mark.parametrize(("channels", "classes"), [(1, ("cat", "dog")), (3, ("cat",))])
def test_prepared_data_is_used_as_was_told(name: str, channels: int, classes: tuple[str, ...], tmp_path: Path) -> None:
    source = pictures(tmp_path / "source", classes)
    config = FolderData(path=source, image_size=8, channels=channels)
    made = prepare(config, tmp_path / name).manifest
    (override,) = split(used_with(tmp_path / name, made))
    data = load_config("demo-meme", [override, "evaluation.sampling.guidance_scale=1"]).data
    assert data.path == tmp_path / name  # type: ignore[union-attr]
    assert (data.image_size, data.channels, data.class_conditional) == (8, channels, len(classes) > 1)


def test_classes_below_several_folders_are_hinted_at(tmp_path: Path) -> None:
    source = pictures(tmp_path / "source" / "my data" / "plain", ("cat", "dog")).parents[1]
    found = check(FolderData(path=source, image_size=8))
    assert any(
        "the only class, my data, is made of folders (cat, dog); give the path of plain" in remark
        for remark in found.remarks
    )


@pytest.mark.parametrize(
    ("grid", "folder", "said"),
    [
        (".", None, r"is a directory, but --grid is one picture; name a file in it, as .*samples.png"),
        ("a.png", "file", r"file is a file, but --out is a folder"),
        ("a.png", "older", r"older holds 2 other picture\(s\), as 000004.png, .* or empty this one"),
    ],
)
def test_where_samples_cannot_go_is_said_before_they_are_drawn(
    grid: str, folder: str | None, said: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "older").mkdir()
    for index in range(6):
        (tmp_path / "older" / f"{index:06d}.png").touch()
    with pytest.raises(ConfigError, match=said):
        require_places(tmp_path / grid, None if folder is None else tmp_path / folder, 4)
    require_places(tmp_path / "new" / "a.png", tmp_path / "other" / "new", 4)


def test_scores_of_two_runs_stand_with_intervals_and_doubts() -> None:
    pair = ScorePair("fid", "small", "c" * 16, 11.166, 15.011, None, (0.5, None), (["8 samples are too few"], []))
    assert pair.told == ["11.17 +- 0.98 (not trustworthy)", "15.01"]


def test_a_place_that_takes_nothing_is_named_before_the_work(tmp_path: Path, mounted: Callable[[str], Path]) -> None:
    require_makeable(None, tmp_path, tmp_path / "new" / "deep")
    disk = mounted("1m")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for place in (disk, disk / "new", disk / "new" / "deep.html"):
        with pytest.raises(ConfigError, match=rf"{place} cannot be made: .* \(Read-only file system\); choose another"):
            require_makeable(place)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/new cannot be made: .*file takes no files \(Not a directory\)"):
        require_makeable(tmp_path / "file" / "new")
