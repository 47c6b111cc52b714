"""Samples on disk are whole or missing, also on a disk that is full."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from workloads.config.evaluation import ProtocolConfig
from workloads.errors import DataError
from workloads.evaluation.generate import batch_indices, labels_of
from workloads.evaluation.samples import SampleStore, write_images


def protocol(num_samples: int = 10, batch_size: int = 4) -> ProtocolConfig:
    return ProtocolConfig(name="p", extractor="fashion-cnn", num_samples=num_samples, batch_size=batch_size)


def images(num_images: int, channels: int = 1, size: int = 5) -> np.ndarray:
    return np.random.default_rng(num_images).integers(0, 256, (num_images, channels, size, size), np.uint8)


@pytest.fixture
def filled(tmp_path: Path) -> SampleStore:
    store = SampleStore(tmp_path / "samples")
    for index, batch in enumerate(np.split(images(10), [4, 8])):
        store.write(index, batch)
    return store


@given(num_samples=st.integers(2, 300), batch_size=st.integers(1, 120))
def test_batches_hold_every_index_once_and_in_order(num_samples: int, batch_size: int) -> None:
    batches = batch_indices(protocol(num_samples, batch_size))
    assert [index for batch in batches for index in batch] == list(range(num_samples))
    assert all(len(batch) == batch_size for batch in batches[:-1])


def test_classes_take_turns() -> None:
    assert labels_of(range(4, 10), 3).tolist() == [1, 2, 0, 1, 2, 0]
    assert labels_of(range(2), None).tolist() == [-1, -1]


def test_what_is_written_is_read_in_order_with_grey_repeated(filled: SampleStore) -> None:
    assert filled.missing(protocol()) == []
    dataset = filled.images(protocol())
    expected = np.repeat(images(10), 3, axis=1)
    assert len(dataset) == 10
    np.testing.assert_array_equal(torch.stack(dataset.__getitems__(list(range(10)))), expected)
    np.testing.assert_array_equal(torch.stack(list(dataset)), expected)  # ends by IndexError


def test_generation_goes_on_where_it_stopped(tmp_path: Path) -> None:
    store = SampleStore(tmp_path)
    assert store.missing(protocol()) == [0, 1, 2]
    store.write(1, images(4))
    assert store.missing(protocol()) == [0, 2]
    with pytest.raises(DataError, match=r"lacks 2 of 3 batches .* batch_00000\.npy"):
        store.images(protocol())


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def cut_header(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:20])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def scramble(file: Path) -> None:
    file.write_bytes(b"\x00" * 300)


def pickled(file: Path) -> None:
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)


def as_float(file: Path) -> None:
    np.save(file, np.load(file).astype(np.float32))


def fewer(file: Path) -> None:
    np.save(file, np.load(file)[:-1])


def of_another_size(file: Path) -> None:
    np.save(file, images(4, size=6))


@pytest.mark.parametrize("damage", [cut, cut_header, empty, scramble, pickled, as_float, fewer, of_another_size])
def test_damaged_batches_are_missing_and_can_be_written_again(filled: SampleStore, damage) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    damage(filled.file(1))
    assert filled.missing(protocol()) == [1]
    filled.write(1, images(10)[4:8])
    assert filled.missing(protocol()) == []


def test_a_larger_protocol_continues_a_smaller_one(filled: SampleStore) -> None:
    assert filled.missing(protocol(num_samples=8)) == []
    assert filled.missing(protocol(num_samples=12)) == [2]
    assert len(filled.images(protocol(num_samples=8))) == 8


def test_floats_are_not_taken_for_samples(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="uint8"):
        SampleStore(tmp_path).write(0, torch.zeros(2, 1, 4, 4))


def test_png_files_hold_the_same_pixels(filled: SampleStore, tmp_path: Path) -> None:
    write_images(filled.images(protocol()), tmp_path / "png")
    files = sorted((tmp_path / "png").iterdir())
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    np.testing.assert_array_equal(pixels.transpose(0, 3, 1, 2), np.repeat(images(10), 3, axis=1))
