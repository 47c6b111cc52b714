"""Every source becomes the same shards; interruption, damage and wrong scaling are noticed."""

import io
import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import AutoencoderKL, VQModel
from PIL import Image

from workloads.config.base import StrictConfig
from workloads.config.data import AnyData, EmbeddedData, FolderData, ParquetData, PreparedData, TorchvisionData
from workloads.config.load import validate
from workloads.data.latents import load_first_stage
from workloads.data.pictures import to_array
from workloads.data.prepare import ensure_prepared, prepare
from workloads.data.prepared import PreparedDataset
from workloads.data.sources import detect_source
from workloads.data.stream import BatchStream
from workloads.errors import DataError

CLASSES = ("boot", "shirt", "trouser")
NUM_PER_CLASS = 5


class Section(StrictConfig):
    data: AnyData


def section(fields: dict[str, Any]) -> AnyData:
    return validate(Section, {"data": fields}).data


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """uint8 (N, H, W, C), classes in turn of NUM_PER_CLASS."""
    return np.random.default_rng(0).integers(0, 256, (len(CLASSES) * NUM_PER_CLASS, 16, 16, 3), dtype=np.uint8)


@pytest.fixture
def folder(pixels: np.ndarray, tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for index, image in enumerate(pixels):
        file = root / CLASSES[index // NUM_PER_CLASS] / f"{index:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    return root


def folder_config(path: Path, **fields: Any) -> FolderData:
    return FolderData(path=path, **({"image_size": 16} | fields))


def labels(num_images: int) -> np.ndarray:
    return np.arange(num_images) // NUM_PER_CLASS


def all_images(dataset: PreparedDataset) -> np.ndarray:
    return dataset.images(np.arange(dataset.num_images))


def test_a_folder_becomes_its_pixels(folder: Path, pixels: np.ndarray, tmp_path: Path) -> None:
    prepare(folder_config(folder), tmp_path / "out", shard_images=4)
    dataset = PreparedDataset(tmp_path / "out")
    assert dataset.class_names == CLASSES
    assert len(dataset.manifest.shards) == 4
    assert np.array_equal(all_images(dataset), pixels.transpose(0, 3, 1, 2))
    assert np.array_equal(dataset.labels(np.arange(len(pixels))), labels(len(pixels)))
    order = np.array([14, 0, 7, 7, 3])  # across shards, with a repetition
    assert np.array_equal(dataset.images(order), pixels[order].transpose(0, 3, 1, 2))


def test_parquet_and_folder_give_the_same_fingerprint(folder: Path, pixels: np.ndarray, tmp_path: Path) -> None:
    rows = []
    for image in pixels:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    table = pa.table({"image": rows, "label": labels(len(pixels))})
    described = {"info": {"features": {"label": {"_type": "ClassLabel", "names": list(CLASSES)}}}}
    (tmp_path / "parquet").mkdir()
    for name, part in (("a.parquet", table[:7]), ("b.parquet", table[7:])):
        pq.write_table(
            part.replace_schema_metadata({"huggingface": json.dumps(described)}), tmp_path / "parquet" / name
        )
    from_parquet = prepare(ParquetData(path=tmp_path / "parquet", image_size=16), tmp_path / "p", shard_images=6)
    from_folder = prepare(folder_config(folder), tmp_path / "f", shard_images=100)
    assert from_parquet.manifest.fingerprint == from_folder.manifest.fingerprint
    assert detect_source(str(tmp_path / "parquet"))["kind"] == "parquet"
    assert detect_source(str(folder))["kind"] == "folder"


def test_cifar10_comes_as_npz_or_as_a_whole_download(tmp_path: Path) -> None:
    import pickle

    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    marks = np.arange(20) % 10
    arrays = {"train_images": images, "train_labels": marks}
    np.savez(tmp_path / "cifar10.npz", **arrays)
    prepared = prepare(section({"kind": "cifar10", "path": tmp_path / "cifar10.npz", "image_size": 32}), tmp_path / "n")
    assert prepared.manifest.class_names[:2] == ("airplane", "automobile")
    assert np.array_equal(all_images(PreparedDataset(tmp_path / "n")), images.transpose(0, 3, 1, 2))
    batches = tmp_path / "tv" / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    (batches / "data_batch_1").write_bytes(pickle.dumps({"data": images.reshape(20, -1), "labels": marks.tolist()}))
    with pytest.raises(DataError, match="torchvision finds no CIFAR10"):  # it checks the download by MD5
        prepare(section({"kind": "cifar10", "path": tmp_path / "tv"}), tmp_path / "t")


def test_a_torchvision_set_on_disk_is_read(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = np.random.default_rng(2).integers(0, 256, (6, 28, 28), dtype=np.uint8)
    for split in ("train", "t10k"):
        header = np.array([0x803, 6, 28, 28], ">u4").tobytes()
        (raw / f"{split}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(np.array([0x801, 6], ">u4").tobytes() + bytes(range(6)))
    config = TorchvisionData(dataset="MNIST", path=tmp_path, image_size=28, channels=1)
    prepare(config, tmp_path / "out")
    assert np.array_equal(all_images(PreparedDataset(tmp_path / "out"))[:, 0], images)
    with pytest.raises(DataError, match="torchvision finds no CIFAR100 in"):
        prepare(TorchvisionData(dataset="CIFAR100", path=tmp_path), tmp_path / "none")
    with pytest.raises(DataError, match="names are case-sensitive"):
        prepare(TorchvisionData(dataset="mnist", path=tmp_path), tmp_path / "none")


def test_an_interrupted_preparation_goes_on_where_it_stopped(folder: Path, tmp_path: Path) -> None:
    whole = prepare(folder_config(folder), tmp_path / "whole", shard_images=4)

    class StopPreparingError(Exception):
        pass

    def interrupt(done: int, total: int) -> None:
        if done >= 8:
            raise StopPreparingError

    out = tmp_path / "out"
    with pytest.raises(StopPreparingError):
        prepare(folder_config(folder), out, shard_images=4, on_progress=interrupt)
    assert not (out / "manifest.json").exists()
    kept = {file.name: file.stat().st_mtime_ns for file in out.glob("shard-*.arrow")}
    assert len(kept) == 2
    resumed = prepare(folder_config(folder), out, shard_images=4)
    assert resumed.manifest == whole.manifest
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    assert prepare(folder_config(folder), out, shard_images=4) == resumed._replace(is_new=False)  # nothing left to do


def test_a_shard_damaged_in_between_is_made_again(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    whole = prepare(folder_config(folder), out, shard_images=4)
    (out / "manifest.json").unlink()
    shard = out / whole.manifest.shards[1].file
    shard.write_bytes(shard.read_bytes()[:-5])
    assert prepare(folder_config(folder), out, shard_images=4).manifest == whole.manifest


@pytest.mark.parametrize("leftover", [".preparation.json.1.partial", ".shard-00000.arrow.1.partial"])
def test_what_a_killed_process_was_writing_is_no_data(folder: Path, tmp_path: Path, leftover: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / leftover).write_bytes(b"half")
    found = prepare(folder_config(folder), out, shard_images=4)
    assert found.manifest == prepare(folder_config(folder), tmp_path / "other", shard_images=4).manifest
    assert not list(out.glob(".shard-*"))


def test_one_of_two_at_the_same_time_waits_and_takes_what_the_other_made(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out, config, made = tmp_path / "out", folder_config(folder), []
    at_work, waits = threading.Event(), threading.Event()

    def hold(done: int, total: int) -> None:
        at_work.set()
        assert waits.wait(60)

    def wait(*_: object) -> None:
        made.append(prepare(config, out, shard_images=4, on_progress=lambda *_: pytest.fail("it does the same")))

    first = threading.Thread(target=lambda: made.append(prepare(config, out, shard_images=4, on_progress=hold)))
    second = threading.Thread(target=wait)
    first.start()
    assert at_work.wait(60)
    second.start()
    while not caplog.messages:
        time.sleep(0.01)
    assert caplog.messages == [f"another process is preparing {out}; waiting for it"]
    waits.set()
    for thread in (first, second):
        thread.join(60)
    assert made[0]._replace(is_new=True) == made[1]._replace(is_new=True)
    assert {one.is_new for one in made} == {True, False}
    assert made[0].manifest == prepare(config, tmp_path / "other", shard_images=4).manifest


def test_another_source_may_not_use_the_same_directory(folder: Path, tmp_path: Path) -> None:
    prepare(folder_config(folder), tmp_path / "out")
    with pytest.raises(DataError, match="another source, size or VAE"):
        prepare(folder_config(folder, image_size=8), tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="is not empty"):
        prepare(folder_config(folder), tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_images_that_do_not_decode_are_named(folder: Path, pixels: np.ndarray, tmp_path: Path) -> None:
    broken = folder / "shirt" / "006.png"
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(DataError, match=r"shirt/006.png does not decode: damaged or cut short"):
        prepare(folder_config(folder), tmp_path / "strict")
    summary = prepare(folder_config(folder), tmp_path / "lenient", max_bad=1)
    assert summary.bad == ("shirt/006.png",)
    kept = np.delete(np.arange(len(pixels)), 6)
    dataset = PreparedDataset(tmp_path / "lenient")
    assert np.array_equal(all_images(dataset), pixels[kept].transpose(0, 3, 1, 2))
    assert np.array_equal(dataset.labels(np.arange(len(kept))), labels(len(pixels))[kept])


def test_wrong_data_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="num_classes is 2, but the data has 3"):
        prepare(folder_config(folder, num_classes=2), tmp_path / "a")
    with pytest.raises(DataError, match="does not exist"):
        prepare(folder_config(tmp_path / "none"), tmp_path / "b")
    (tmp_path / "flat").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        prepare(folder_config(tmp_path / "flat"), tmp_path / "c")
    (tmp_path / "flat" / "class").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        prepare(folder_config(tmp_path / "flat"), tmp_path / "d")
    out = prepare(folder_config(folder), tmp_path / "e").path
    with pytest.raises(DataError, match=r"image_size is 32, but .* holds 16 x 16"):
        ensure_prepared(PreparedData(path=out, image_size=32), tmp_path)
    with pytest.raises(DataError, match=r"channels is 1, but .* holds images of 3"):
        ensure_prepared(PreparedData(path=out, image_size=16, channels=1), tmp_path)


def test_a_prepared_directory_cut_short_is_noticed(folder: Path, tmp_path: Path) -> None:
    out = prepare(folder_config(folder), tmp_path / "out").path
    shard = next(out.glob("*.arrow"))
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(DataError, match=r"shard-00000\.arrow"):
        PreparedDataset(out)


def test_pictures_are_cropped_and_resized_as_torchvision_does() -> None:
    from torchvision.transforms import v2

    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (60, 90, 3), dtype=np.uint8))
    ours = to_array(image, 20, 3).transpose(1, 2, 0)
    expected = np.asarray(v2.functional.center_crop(image, [60, 60]).resize((20, 20), Image.Resampling.LANCZOS))
    inner = np.s_[3:-3, 3:-3]  # near the border ours sees a little of what is cropped away
    assert np.abs(ours[inner].astype(int) - expected[inner].astype(int)).max() <= 1
    clear = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    assert to_array(clear, 20, 3).min() == 255  # transparent is white


def test_the_embedded_set_is_whole(tmp_path: Path) -> None:
    dataset = ensure_prepared(EmbeddedData(channels=1), tmp_path)
    assert (dataset.num_images, dataset.shape, dataset.num_classes) == (10_000, (1, 28, 28), 10)
    assert np.array_equal(np.bincount(dataset.labels(np.arange(10_000))), np.full(10, 1000))
    size = Path(__file__).parents[2] / "workloads" / "data" / "assets" / "fashion-mnist-10k.parquet"
    assert size.stat().st_size <= 5e6


@pytest.fixture
def vae(tmp_path: Path) -> Path:
    """An autoencoder with random weights; its scaling factor makes the latents' deviation one."""
    torch.manual_seed(0)
    model = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=1.0,
        shift_factor=0.1,
    )
    model.save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


def set_scaling(vae: Path, factor: float) -> None:
    config = json.loads((vae / "config.json").read_text())
    (vae / "config.json").write_text(json.dumps(config | {"scaling_factor": factor}))


def encoded(vae: Path, pixels: np.ndarray) -> torch.Tensor:
    """What diffusers itself makes of the images, one by one."""
    model = AutoencoderKL.from_pretrained(vae)
    with torch.inference_mode():
        return torch.cat(
            [
                model.encode(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1).latent_dist.mean
                for image in pixels
            ]
        )


def test_latents_with_wrong_scaling_are_refused_and_the_right_factor_named(
    folder: Path, vae: Path, pixels: np.ndarray, tmp_path: Path
) -> None:
    moments = encoded(vae, pixels)
    right = 1 / float(moments.std(correction=0))
    set_scaling(vae, right / 5)
    with pytest.raises(DataError, match=f"standard deviation 0.2 .*{right:.4g} would be right"):
        prepare(folder_config(folder), tmp_path / "wrong", vae=vae)
    assert not (tmp_path / "wrong" / "manifest.json").exists()

    set_scaling(vae, right)
    summary = prepare(folder_config(folder), tmp_path / "right", vae=vae, shard_images=6)
    latent = summary.manifest.latent
    assert latent is not None
    assert latent.std == pytest.approx(1, abs=2e-3)
    dataset = PreparedDataset(tmp_path / "right")
    assert dataset.shape == (4, 8, 8)
    stored = torch.from_numpy(all_images(dataset))
    torch.testing.assert_close(stored, (moments - 0.1) * right, rtol=2e-3, atol=2e-3)  # stored in float16
    torch.testing.assert_close(latent.unscale(stored), moments, rtol=2e-3, atol=2e-3)


def test_a_posterior_is_kept_of_the_image_and_of_its_mirror_image(
    folder: Path, vae: Path, pixels: np.ndarray, tmp_path: Path
) -> None:
    factor = 1 / float(encoded(vae, pixels).std(correction=0))
    set_scaling(vae, factor)
    prepare(folder_config(folder), tmp_path / "out", vae=vae, posterior=True, shard_images=6)
    dataset = PreparedDataset(tmp_path / "out")
    assert dataset.shape == (4, 8, 8)
    every = np.arange(dataset.num_images)
    model = AutoencoderKL.from_pretrained(vae)
    for mirrored in (False, True):
        turned = pixels[:, :, ::-1].copy() if mirrored else pixels
        with torch.inference_mode():
            theirs = model.encode(torch.from_numpy(turned).permute(0, 3, 1, 2).float() / 127.5 - 1).latent_dist
        mean, std = map(torch.from_numpy, dataset.posteriors(every, np.full(len(every), mirrored)))
        torch.testing.assert_close(mean, (theirs.mean - 0.1) * factor, rtol=2e-3, atol=2e-3)  # stored in float16
        torch.testing.assert_close(std, theirs.std * factor, rtol=5e-3, atol=1e-4)
        if not mirrored:
            assert np.array_equal(dataset.images(every), mean.numpy())
    with pytest.raises(DataError, match="leave it out"):
        prepare(folder_config(folder), tmp_path / "pixels", posterior=True)
    with pytest.raises(DataError, match="another source"):
        prepare(folder_config(folder), tmp_path / "out", vae=vae, shard_images=6)


def test_latents_are_drawn_anew_in_each_epoch_whoever_draws_them(
    folder: Path, vae: Path, pixels: np.ndarray, tmp_path: Path
) -> None:
    set_scaling(vae, 1 / float(encoded(vae, pixels).std(correction=0)))
    prepare(folder_config(folder), tmp_path / "out", vae=vae, posterior=True)
    dataset = PreparedDataset(tmp_path / "out")
    number, num_epochs = dataset.num_images, 400
    stream = BatchStream(dataset, batch_size=number, seed=5, flip=True)
    standard = []
    for epoch in range(num_epochs):
        indices, mirrored = stream.places_at(epoch * number)
        mean, std = dataset.posteriors(indices, mirrored)
        standard.append((stream.at(epoch * number).images_BCHW.numpy() - mean) / std)
    noise = np.stack(standard)
    # 400 epochs of at least ten latents of 256 values: a million draws.
    assert abs(noise.mean()) < 5 / np.sqrt(noise.size)
    assert abs(noise.std() - 1) < 5 / np.sqrt(2 * noise.size)
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 5 / np.sqrt(noise[0].size)
    halves = [BatchStream(dataset, batch_size=2, seed=5, flip=True, rank=rank, world_size=2) for rank in range(2)]
    alone = BatchStream(dataset, batch_size=4, seed=5, flip=True)
    for images_seen in (0, 4 * number):
        together = torch.cat([half.at(images_seen).images_BCHW for half in halves])
        assert torch.equal(together, alone.at(images_seen).images_BCHW)


def test_a_quantising_first_stage_goes_there_and_back(folder: Path, pixels: np.ndarray, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = VQModel(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=3,
        norm_num_groups=4,
        num_vq_embeddings=16,
        scaling_factor=1.0,
    ).eval()
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        latents = model.encode(images).latents
        factor = 1 / float(latents.std(correction=0))
        decoded = model.decode(latents).sample
    model.register_to_config(scaling_factor=factor)
    model.save_pretrained(tmp_path / "vq")
    summary = prepare(folder_config(folder), tmp_path / "out", vae=tmp_path / "vq")
    stored = torch.from_numpy(all_images(PreparedDataset(tmp_path / "out")))
    torch.testing.assert_close(stored, latents * factor, rtol=2e-3, atol=2e-3)
    assert summary.manifest.latent is not None
    with torch.inference_mode():
        again = load_first_stage(tmp_path / "vq").decode(summary.manifest.latent.unscale(stored)).sample
    # An image whose latents lie between two entries of the codebook may be quantised otherwise after float16.
    assert (again - decoded).abs().flatten(1).max(1).values.median() < 0.02
    with pytest.raises(DataError, match="leave --posterior out"):
        prepare(folder_config(folder), tmp_path / "none", vae=tmp_path / "vq", posterior=True)
    (tmp_path / "vq" / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(DataError, match="holds a UNet2DModel; it must be one of AutoencoderKL, VQModel"):
        prepare(folder_config(folder), tmp_path / "none", vae=tmp_path / "vq")
