"""The training order is a function of (seed, images seen): permutations, ranks, resumption, mirroring."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from workloads.config.data import EmbeddedData
from workloads.data.prepare import ensure_prepared
from workloads.data.prepared import PreparedDataset
from workloads.data.stream import BatchStream


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return ensure_prepared(EmbeddedData(image_size=8, channels=1), tmp_path_factory.mktemp("data"))


def rows(images_BCHW: torch.Tensor) -> list[bytes]:
    return [image.numpy().tobytes() for image in images_BCHW]


def test_an_epoch_shows_every_image_once(dataset: PreparedDataset) -> None:
    stream = BatchStream(dataset, batch_size=250, seed=1)
    shown = [row for step in range(40) for row in rows(stream.at(250 * step).images_BCHW)]
    stored = torch.from_numpy(dataset.images(np.arange(10_000))).float().div(127.5).sub(1)
    assert sorted(shown) == sorted(rows(stored))
    second = [row for step in range(40, 80) for row in rows(stream.at(250 * step).images_BCHW)]
    assert sorted(second) == sorted(shown)
    assert second != shown


def test_a_batch_may_span_two_epochs(dataset: PreparedDataset) -> None:
    stream = BatchStream(dataset, batch_size=300, seed=1)
    spanning = stream.at(9_900)
    ends = BatchStream(dataset, batch_size=100, seed=1)
    expected = torch.cat([ends.at(start).images_BCHW for start in (9_900, 10_000, 10_100)])
    assert torch.equal(spanning.images_BCHW, expected)


def test_ranks_together_see_what_one_rank_sees(dataset: PreparedDataset) -> None:
    alone = BatchStream(dataset, batch_size=32, seed=2)
    ranks = [BatchStream(dataset, batch_size=8, seed=2, rank=rank, world_size=4) for rank in range(4)]
    for images_seen in (0, 32, 9_984):
        together = [rank.at(images_seen) for rank in ranks]
        expected = alone.at(images_seen)
        assert torch.equal(torch.cat([batch.images_BCHW for batch in together]), expected.images_BCHW)
        assert torch.equal(torch.cat([batch.labels_B for batch in together]), expected.labels_B)


def test_iterating_from_anywhere_goes_on_as_if_never_stopped(dataset: PreparedDataset) -> None:
    stream = BatchStream(dataset, batch_size=16, seed=3, flip=True)
    with closing(stream.iterate(9_984)) as batches:
        for step in range(5):
            assert torch.equal(next(batches).images_BCHW, stream.at(9_984 + 16 * step).images_BCHW)


def test_half_of_the_images_are_mirrored_and_nothing_else_changes(dataset: PreparedDataset) -> None:
    plain = BatchStream(dataset, batch_size=2000, seed=4).at(0)
    mirrored = BatchStream(dataset, batch_size=2000, seed=4, flip=True).at(0)
    same = (plain.images_BCHW == mirrored.images_BCHW).flatten(1).all(1)
    turned = (plain.images_BCHW.flip(-1) == mirrored.images_BCHW).flatten(1).all(1)
    assert bool((same | turned).all())
    assert abs(int(turned.sum()) - 1000) < 4 * np.sqrt(500)  # four standard deviations, and symmetric images
    assert torch.equal(plain.labels_B, mirrored.labels_B)


def test_an_error_while_reading_reaches_the_consumer(dataset: PreparedDataset, tmp_path: Path) -> None:
    class Broken(PreparedDataset):
        def images(self, indices: np.ndarray) -> np.ndarray:
            raise OSError(5, "Input/output error", str(tmp_path))

    stream = BatchStream(Broken(dataset.path), batch_size=4, seed=0)
    with closing(stream.iterate()) as batches, pytest.raises(OSError, match="Input/output error"):
        next(batches)
