"""Figures show the numbers they were given; grids show every pixel."""

import io

import matplotlib.pyplot
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from workloads.analysis.figures import (
    coefficients_figure,
    count_owner_is_best,
    loss_by_timestep_figure,
    loss_matrix_figure,
    spectra_figure,
    training_loss_figure,
    training_share,
)
from workloads.analysis.spectra import Spectra
from workloads.config import Interval, IntervalTable
from workloads.grid import GAP_PX, sample_grid
from workloads.training.records import TrainingRecord

TABLE = IntervalTable((40,), 100)
CURVES = (((20, 0.1), (50, 0.3), (80, 0.5)), ((20, 0.2), (50, 0.4), (80, 0.2)))
"""Expert 0 is the best at 20 and 50, expert 1 at 80; 50 is expert 1's."""


def render(figure: Figure) -> Image.Image:
    """The figure as the PNG a caller would save."""
    file = io.BytesIO()
    figure.savefig(file)
    return Image.open(file)


def texts(figure: Figure) -> str:
    return " ".join([figure.get_suptitle(), *(ax.get_xlabel() + " " + ax.get_ylabel() for ax in figure.axes)])


def test_training_losses_are_drawn_over_images_seen_on_a_log_axis() -> None:
    records = [[TrainingRecord(64 * i, 1 / (i + shift), 9.0, 1e-3, 0.0) for i in (1, 2, 3)] for shift in (0, 1)]
    figure = training_loss_figure(records, TABLE)
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    for line, expert_records in zip(axes.lines, records, strict=True):
        np.testing.assert_array_equal(line.get_xdata(), [64, 128, 192])
        np.testing.assert_array_equal(line.get_ydata(), [record.loss for record in expert_records])
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["expert 0 [0, 40)", "expert 1 [40, 100)"]
    assert "images seen" in texts(figure)
    image = render(figure)
    assert image.size == (1050, 600)  # 7 x 4 inches at 150 dpi
    assert len(set(image.convert("RGB").get_flattened_data())) > 100


def test_loss_by_timestep_marks_who_is_in_charge_and_who_is_best() -> None:
    figure = loss_by_timestep_figure(CURVES, TABLE, [0.8, 0.0])
    axes, strip = figure.axes
    whole, thick = axes.lines[0::2], axes.lines[1::2]
    assert [list(line.get_ydata()) for line in whole] == [[0.1, 0.3, 0.5], [0.2, 0.4, 0.2]]
    assert [list(line.get_xdata()) for line in thick] == [[20], [50, 80]]
    assert "lowest loss at 2 of 3 timesteps" in texts(figure)
    assert [(patch.get_x(), patch.get_width()) for patch in axes.patches] == [(0, 40), (40, 60)]
    assert [text.get_text() for text in strip.texts] == ["88%", "60%"]
    assert "timestep t (0 = clean image)" in texts(figure)
    own_row, other_row = strip.collections[0:2], strip.collections[2:4]
    # Expert 0 spends 88 % on 40 timesteps and 12 % on 60; expert 1 is trained on all timesteps alike.
    assert own_row[0].get_alpha() == pytest.approx((0.12 / 60) / (0.88 / 40))
    assert other_row[0].get_alpha() == pytest.approx(1.0)
    render(figure)


def test_the_count_of_best_owners_is_that_of_a_loop() -> None:
    assert count_owner_is_best(CURVES, TABLE) == (2, 3)
    swapped = (CURVES[1], CURVES[0])
    assert count_owner_is_best(swapped, TABLE) == (1, 3)
    assert count_owner_is_best(CURVES[:1], IntervalTable((), 100)) == (3, 3)


@pytest.mark.parametrize(("p", "share"), [(0.8, 0.85), (0.4, 0.55), (0.2, 0.4), (0.1, 0.325), (1.0, 1.0), (0.0, 0.25)])
def test_training_shares_are_those_of_the_meme_paper(p: float, share: float) -> None:
    assert training_share(Interval(250, 500), p, 1000) == pytest.approx(share)


def test_spectra_have_a_row_per_expert_a_column_per_block_and_a_curve_per_timestep() -> None:
    blocks = {"down_blocks.0": 8, "mid_block": 7, "up_blocks.0": 8}
    frequencies = {block: np.arange(size // 2 + 1) * 2 / size for block, size in blocks.items()}

    def spectra(timesteps: tuple[int, ...], depth: float) -> Spectra:
        curves = {block: np.outer(np.arange(1, len(timesteps) + 1), -depth * f) for block, f in frequencies.items()}
        return Spectra(timesteps, frequencies if timesteps else {}, curves if timesteps else {})

    experts = [spectra((), 0), spectra((10, 30), 1), spectra((50,), 2)]
    names = ["expert 0 [0, 5)", "expert 1 [5, 40)", "expert 2 [40, 100)"]
    figure = spectra_figure(experts, names, 100)
    assert "nothing follows about experts" in texts(figure)
    alike = spectra_figure([spectra((10, 30), 1), spectra((10, 30), 2)], names[:2], 100)
    assert "exceeds the differences" in texts(alike)
    render(alike)
    assert "follows" not in texts(alike)
    assert ";" not in texts(spectra_figure([spectra((10, 30), 1)], names[:1], 100))
    panels = np.reshape(figure.axes[:9], (3, 3))
    assert [len(axes.lines) for axes in panels[:, 1]] == [0, 2, 1]
    assert [axes.get_title() for axes in panels[0]] == ["encoder 0\n8 px", "middle\n7 px", "decoder 0\n8 px"]
    assert [axes.get_ylabel() for axes in panels[:, 0]] == [
        "expert 0\n[0, 5)",
        "expert 1\n[5, 40)",
        "expert 2\n[40, 100)",
    ]
    np.testing.assert_allclose(panels[1, 1].lines[1].get_ydata(), [0, -4 / 7, -8 / 7, -12 / 7])
    np.testing.assert_allclose(panels[1, 1].lines[1].get_xdata(), [0, 2 / 7, 4 / 7, 6 / 7])
    lightness = [sum(panel.lines[0].get_color()[:3]) for panel in (panels[1, 0], panels[2, 0])]
    assert lightness[0] < lightness[1]  # later timesteps are lighter
    assert figure.axes[9].get_ylabel() == "timestep t (0 = clean image)"
    render(figure)


def test_figures_do_not_touch_the_global_state_of_matplotlib() -> None:
    before = dict(matplotlib.rcParams)
    loss_by_timestep_figure(CURVES, TABLE, [1.0, 1.0])
    assert dict(matplotlib.rcParams) == before
    assert matplotlib.pyplot.get_fignums() == []  # nothing that would pile up in a long-running process


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_shows_every_pixel_of_every_image_in_its_place(channels: int) -> None:
    images = torch.randint(0, 256, (5, channels, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    grid = np.asarray(sample_grid(images, num_columns=2, scale=3))
    assert grid.shape == (3 * (12 + GAP_PX) + GAP_PX, 2 * (18 + GAP_PX) + GAP_PX, 3)
    covered = np.zeros(grid.shape[:2], bool)
    for index, image in enumerate(images.numpy()):
        for y in range(12):
            for x in range(18):
                row = index // 2 * (12 + GAP_PX) + GAP_PX + y
                column = index % 2 * (18 + GAP_PX) + GAP_PX + x
                assert list(grid[row, column]) == list(image[:, y // 3, x // 3]) * (3 // channels)
                covered[row, column] = True
    assert (grid[~covered] == 0x20).all()


def test_small_images_are_enlarged_and_large_ones_are_not() -> None:
    assert sample_grid(np.zeros((1, 1, 28, 28), np.uint8), num_columns=1).size == (56 + 4, 56 + 4)
    assert sample_grid(np.zeros((2, 3, 256, 256), np.uint8), num_columns=2).size == (2 * 258 + 2, 260)


def test_class_names_stand_in_front_of_their_rows() -> None:
    images = np.full((4, 1, 28, 28), 255, np.uint8)
    plain, named = sample_grid(images, num_columns=2), sample_grid(images, num_columns=2, labels=["", "Ankle boot"])
    left = named.width - plain.width
    assert 60 < left < 120
    assert named.crop((left, 0, *named.size)).tobytes() == plain.tobytes()
    margin = np.asarray(named.convert("L"))[:, :left]
    assert margin[:58].max() == 0x20  # no name, no ink
    rows, columns = np.nonzero(margin > 128)
    assert 58 < rows.min() < rows.max() < 116
    assert columns.min() > 2
    assert columns.max() < left - 2
    with pytest.raises(ValueError, match="1 labels for 2 rows"):
        sample_grid(images, num_columns=2, labels=["Ankle boot"])


def test_coefficients_are_drawn_and_written_basis_by_expert() -> None:
    table_NK = np.array([[0.9, 0.1, 0.0], [0.2, 0.3, 0.5]])
    history = [{"images_seen": 10 * i, "coefficients": (table_NK * i / 2).tolist()} for i in (1, 2)]
    figure = coefficients_figure(table_NK, TABLE, history)
    now, *bases = figure.axes[:4]
    np.testing.assert_array_equal(now.images[0].get_array(), table_NK.T)
    written = {(int(text.get_position()[0]), int(text.get_position()[1])): text.get_text() for text in now.texts}
    assert written[0, 0] == "0.90"
    assert written[1, 2] == "0.50"
    for basis, axes in enumerate(bases):
        np.testing.assert_allclose(
            axes.images[0].get_array(), np.stack([table_NK[:, basis] / 2, table_NK[:, basis]], 1)
        )
    assert render(figure).width > 0
    render(coefficients_figure(table_NK, TABLE, []))


def test_the_loss_matrix_is_relative_to_the_best_and_frames_the_owner() -> None:
    figure = loss_matrix_figure(CURVES, TABLE)
    axes = figure.axes[0]
    expected = 100 * np.array([[0.1 / 0.1, 0.3 / 0.3, 0.5 / 0.2], [0.2 / 0.1, 0.4 / 0.3, 0.2 / 0.2]]) - 100
    np.testing.assert_allclose(axes.images[0].get_array(), expected)
    assert [(frame.get_x() + 0.5, frame.get_y() + 0.5) for frame in axes.patches] == [(0, 0), (1, 1), (2, 1)]
    assert "best at 2 of 3 timesteps" in figure.get_suptitle()
    render(figure)
