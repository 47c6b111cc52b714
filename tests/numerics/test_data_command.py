"""`rememe data`: what is found is told and stored, what is bad is counted, what is shown is what is trained on."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.runs.data import check_source, plan_as_far_as_known, prepare_source, source_config
from workloads.config import load_config
from workloads.data import decode, prepare
from workloads.data.prepare import FOUND
from workloads.data.prepared import PreparedDataset
from workloads.errors import ConfigError, DataError

SIDE = 8


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes of four pictures, and what lies beside them."""
    root = tmp_path / "pictures"
    for label, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (SIDE + number, SIDE), (10 * number, 100 * label, 0)).save(root / name / f"{number}.png")
    Image.new("L", (4, 4)).save(root / "dog" / "small.gif")
    (root / "cat" / ".DS_Store").touch()
    (root / "birds").mkdir()
    Image.new("L", (4, 4)).save(root / "overview.png")
    return root


def spoil(root: Path) -> None:
    (root / "cat" / "a.jpg").touch()
    (root / "cat" / "b.jpg").touch()
    (root / "dog" / "c.jpg").write_text("<html>")
    os.mkfifo(root / "dog" / "d.jpg")


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["data", *map(str, words)])
    if isinstance(result.exception, DataError):  # what main() prints
        return result.exception.exit_code, str(result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout


def test_what_is_found_is_told_and_stored(pictures: Path, tmp_path: Path) -> None:
    code, told = run("prepare", pictures, tmp_path / "out", "--size", SIDE)
    assert code == 0
    for words in ("class cat", "class birds", "no picture", "4 x 4 to 11 x 8", "8 PNG RGB, 1 GIF", "1 enlarged"):
        assert words in told
    assert "1 hidden, for instance cat/.DS_Store" in told
    assert "1 in no class folder, for instance overview.png" in told
    stored = json.loads((tmp_path / "out" / FOUND).read_text())
    assert stored["classes"] == [["birds", 0], ["cat", 4], ["dog", 5]]
    before = sorted(path.name for path in tmp_path.iterdir())
    assert run("check", pictures, "--size", SIDE) == (0, told[: told.index(f"{tmp_path / 'out'}:")])
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_bad_pictures_are_counted_by_reason(pictures: Path, tmp_path: Path) -> None:
    spoil(pictures)
    code, told = run("prepare", pictures, tmp_path / "none", "--size", SIDE)
    assert (code, told.partition(";")[0]) == (2, "cat/a.jpg does not decode: an empty file")
    # Nothing was made, so OUT is free for other data.
    assert run("prepare", "embedded", tmp_path / "none", "--size", 4, "--channels", 1)[0] == 0
    again = run("prepare", "embedded", tmp_path / "none", "--size", 4, "--channels", 1)[1]
    assert "10000 images of shape (1, 4, 4), 10 classes, as they were prepared before" in again
    code, told = run("prepare", pictures, tmp_path / "some", "--size", SIDE, "--max-bad", 3)
    assert code == 2
    assert "4 images do not decode (2 an empty file, 1 a web page, 1 not a file; cat/a.jpg" in told
    assert "more than --max-bad 3" in told
    code, told = run("prepare", pictures, tmp_path / "some", "--size", SIDE, "--max-bad", 4)
    assert code == 0
    assert PreparedDataset(tmp_path / "some").num_images == 9
    code, told = run("check", pictures, "--size", SIDE)
    assert code == 2
    assert "more than --max-bad 0; mend or remove them, or allow that with --max-bad 4" in told
    assert run("check", pictures, "--size", SIDE, "--max-bad", 4)[0] == 0


def test_no_more_is_decoded_than_is_needed_to_refuse(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(500):
        (pictures / "cat" / f"x{number:03d}.png").touch()
    seen: list[int] = []
    original = decode.read_picture
    monkeypatch.setattr(decode, "read_picture", lambda *words: (seen.append(1), original(*words))[1])
    with pytest.raises(DataError, match=r"x000\.png does not decode"):
        prepare_source(str(pictures), tmp_path / "out", vae=None, max_bad=0, size=SIDE, channels=3)
    assert len(seen) < 100


def test_large_images_lie_in_shards_that_fit_into_memory(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare_source(str(pictures), tmp_path / "whole", vae=None, max_bad=0, size=SIDE, channels=3).manifest
    monkeypatch.setattr(prepare, "SHARD_BYTES", 2 * SIDE * SIDE * 3)
    parts = prepare_source(str(pictures), tmp_path / "parts", vae=None, max_bad=0, size=SIDE, channels=3).manifest
    assert [shard.num_images for shard in parts.shards] == [2, 2, 2, 2, 1]
    assert parts.fingerprint == whole.fingerprint


def test_options_without_a_meaning_are_refused(pictures: Path) -> None:
    with pytest.raises(DataError, match=r"--image-column has no meaning for .*pictures"):
        source_config(str(pictures), size=SIDE, channels=3, image_column="image")
    assert check_source(str(pictures), size=SIDE, channels=3, label_column="none").classes == (("all", 10),)


def test_show_draws_what_the_trainer_sees(pictures: Path, tmp_path: Path) -> None:
    run("prepare", pictures, tmp_path / "out", "--size", SIDE)
    code, told = run("show", tmp_path / "out", "--out", tmp_path / "grid.png", "--columns", 3)
    assert code == 0
    dataset = PreparedDataset(tmp_path / "out")
    kept = dataset.images(np.array([0, 1, 2, 4, 5, 6])) / 127.5 - 1
    assert f"({3}, {SIDE}, {SIDE}), {kept.min():.3f} to {kept.max():.3f}, mean {kept.mean():.3f}" in told
    code, told = run("show", tmp_path / "out")
    assert (code, (tmp_path / "out.png").is_file()) == (0, True)
    assert f"{tmp_path / 'out.png'}: a row per class" in told
    drawn = np.asarray(Image.open(tmp_path / "grid.png").convert("RGB")).reshape(-1, 3)
    for colour in ((0, 0, 0), (10, 0, 0), (20, 0, 0), (0, 100, 0), (20, 100, 0)):
        assert (np.abs(drawn.astype(int) - colour).sum(1) == 0).sum() >= SIDE * SIDE


def test_what_was_damaged_since_is_not_shown(pictures: Path, tmp_path: Path) -> None:
    assert run("prepare", pictures, tmp_path / "out", "--size", SIDE)[0] == 0
    (shard,) = (tmp_path / "out").glob("*.arrow")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 255
    shard.write_bytes(content)
    code, said = run("show", tmp_path / "out")
    assert code == 2
    assert "does not match its checksum" in said


def test_what_is_prepared_does_not_lie_in_its_source(pictures: Path) -> None:
    code, said = run("prepare", pictures, pictures / "new" / "out", "--size", SIDE)
    assert code == 2
    assert f"lies within {pictures}" in said
    assert not (pictures / "new").exists()


@pytest.fixture
def vae(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    made = AutoencoderKL(block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
                         up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4)  # fmt: skip
    made.save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


def write_latents(root: Path, latents: np.ndarray) -> None:
    """As extract_features.py of DiT and Remix-DiT: a file for each and one for its label, number modulo 3."""
    for name, values in (("features", latents), ("labels", np.arange(len(latents))[:, None] % 3)):
        (root / f"imagenet256_{name}").mkdir(parents=True)
        for number, value in enumerate(values):
            np.save(root / f"imagenet256_{name}" / f"{number}.npy", value)


def test_latents_of_dit_are_taken_as_they_are(tmp_path: Path, vae: Path) -> None:
    latents = np.random.default_rng(0).normal(size=(12, 1, 4, 8, 8)).astype(np.float32)
    write_latents(tmp_path / "latents", latents)
    with pytest.raises(DataError, match="--vae"):
        source_config(str(tmp_path / "latents"), size=SIDE, channels=3)
    options = {"vae": vae, "max_bad": 0, "size": SIDE, "channels": 3}
    prepare_source(str(tmp_path / "latents"), tmp_path / "out", **options)
    dataset = PreparedDataset(tmp_path / "out")
    assert np.array_equal(dataset.images(np.arange(12)), latents[:, 0].astype(np.float16).astype(np.float32))
    assert np.array_equal(dataset.labels(np.arange(12)), np.arange(12) % 3)
    assert run("show", tmp_path / "out", "--out", tmp_path / "grid.png")[0] == 0
    np.save(tmp_path / "latents" / "imagenet256_features" / "3.npy", np.full((1, 4, 8, 8), np.nan))
    with pytest.raises(DataError, match=r"3\.npy does not decode: not finite"):
        prepare_source(str(tmp_path / "latents"), tmp_path / "other", **options)


def test_of_remix_dits_pairs_the_unmirrored_latent_is_taken(tmp_path: Path, vae: Path) -> None:
    latents = np.random.default_rng(0).normal(size=(4, 2, 4, 8, 8)).astype(np.float32)
    write_latents(tmp_path / "latents", latents)
    made = prepare_source(str(tmp_path / "latents"), tmp_path / "out", vae=vae, max_bad=0, size=SIDE, channels=3)
    found = PreparedDataset(tmp_path / "out").images(np.arange(4))
    assert np.array_equal(found, latents[:, 0].astype(np.float16).astype(np.float32))
    assert made.found is not None
    assert "mirrored" in made.found.remarks[-1]


@pytest.mark.parametrize("packed", [True, False])
def test_of_edm2s_means_and_spreads_the_scaled_mean_is_taken(tmp_path: Path, vae: Path, packed: bool) -> None:
    rng = np.random.default_rng(0)
    latents = np.concatenate([rng.normal(size=(6, 4, 8, 8)) / 0.18215, rng.random((6, 4, 8, 8))], axis=1)
    names = [f"00000/img-mean-std-{number:08d}.npy" for number in range(6)]
    root = tmp_path / "vae-sd"
    (root / "00000").mkdir(parents=True)
    for name, latent in zip(names, latents.astype(np.float32), strict=True):
        np.save(root / name, latent)
    labels = [[name, number % 2] for number, name in enumerate(names)]
    (root / "dataset.json").write_text(json.dumps({"labels": labels}))
    source = Path(shutil.make_archive(str(tmp_path / "edm2"), "zip", root)) if packed else root
    prepare_source(str(source), tmp_path / "out", vae=vae, max_bad=0, size=SIDE, channels=3)
    dataset = PreparedDataset(tmp_path / "out")
    expected = (latents[:, :4].astype(np.float32) * np.float32(0.18215)).astype(np.float16)
    assert np.array_equal(dataset.images(np.arange(6)), expected.astype(np.float32))
    assert dataset.labels(np.arange(6)).tolist() == [0, 1] * 3
    assert dataset.manifest.latent is not None
    np.save(root / names[0], latents[0, :3])
    with pytest.raises(DataError, match=r"img-mean-std-00000000\.npy holds no latent .*\(3, 8, 8\), where it makes"):
        check_source(str(root), size=SIDE, channels=3, vae=vae)


def test_a_network_that_does_not_fit_is_told_before_its_data_is_made(pictures: Path, tmp_path: Path) -> None:
    data = f"kind: folder, path: {pictures}, class_conditional: true"
    with pytest.raises(ConfigError, match="21"):
        plan_as_far_as_known(load_config("demo-meme", [f"data={{{data}, image_size: 21}}"]), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    fitting = load_config("demo-meme", [f"data={{{data}, image_size: 28}}"])
    assert plan_as_far_as_known(fitting, tmp_path / "runs").jobs[0].key


def test_a_plan_that_this_machine_cannot_hold_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for batch_size, expected in ((16, ""), (10**9, "B of memory and this machine has ")):
        plan_as_far_as_known(load_config("demo-meme", [f"training.batch_size={batch_size}"]), tmp_path / "runs")
        told = capsys.readouterr().err
        assert ("of memory" in told) == bool(expected)
        assert expected in told
