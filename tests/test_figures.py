"""Figures plot the saved numbers they were given, and give the same bytes every time."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from synthetic_metrics import write_metrics

from splam import claims, figures
from splam.report import Metrics, load_metrics


@pytest.fixture(scope="module")
def metrics(tmp_path_factory) -> Metrics:
    return load_metrics(write_metrics(tmp_path_factory.mktemp("tiny"), seeds=3))


def test_figure2a_plots_each_student_with_and_without_me(metrics):
    points = figures.figure2a_points(metrics.rows).set_index(["student", "me", "skip"])
    assert (
        points.loc[("SPLAM (scaled input)", True, 20), "fid"] == points.loc[("SPLAM (scaled input)", False, 20), "fid"]
    )
    lcm = metrics.rows[(metrics.rows["run"] == "LCM (fix w)  w3 k100 False") & (metrics.rows["dataset"] == "unseen")]
    fids = lcm.loc[lcm["steps"] == 4, "fid"]
    cell = points.loc[("LCM", False, 100)]
    assert (cell["fid"], cell["seeds"]) == (pytest.approx(fids.mean()), 3)
    assert cell["fid_se"] == pytest.approx(fids.sem())
    axis = figures.figure2a(points.reset_index(), "FID (EfficientNet-Lite0)").axes[0]
    labels = axis.get_legend_handles_labels()[1]
    assert {"LCM", "SPLAM (raw input) + ME", "SPLAM (scaled input)", "Teacher"} <= set(labels)
    assert axis.get_ylabel() == "FID (EfficientNet-Lite0)"


def test_figure2b_has_a_line_for_each_student_of_the_curve(metrics):
    points = figures.figure2b_points(metrics.rows)
    assert sorted(points["iteration"].unique()) == [0, 10, 25, 50, 75, 100]
    axis, nearer = figures.figure2b(points, "FID").axes
    assert [axis.get_ylabel(), nearer.get_ylabel()] == ["FID", "FID to the teacher's images"]
    assert nearer.lines[0].get_ydata()[0] == pytest.approx(0.8 * 1100)  # the network undistilled
    assert len(figures.figure2b(points.assign(fid_teacher=np.nan), "FID").axes) == 1
    labels = axis.get_legend_handles_labels()[1]
    assert {"undistilled", "LCM, k = 20", "SPLAM (scaled input), k = 20", "SPLAM (scaled input), k = 100 + ME"} <= set(
        labels
    )


def test_figure2c_shows_the_x0_error_beside_delta(metrics):
    points = figures.figure2c_points(metrics.delta)
    one = metrics.delta[metrics.delta["seed"] == 0]
    alone = figures.figure2c_points(one)
    assert len(points) == len(alone) == 2 * 44
    assert (alone["delta_rms_se"] == alone["delta_rms"] / 50).all(), "one seed: the error over images"
    left, right = figures.figure2c(points).axes
    assert len(left.get_legend_handles_labels()[1]) == 2
    assert len(right.lines) == 2


def test_a_mosaic_puts_images_in_rows_on_white():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] + np.zeros((5, 2, 3, 3), np.uint8)
    picture = figures.mosaic(images, columns=3, gap=1)
    assert picture.shape == (2 * 3 + 1, 3 * 4 + 1, 3)
    assert (picture[4:6, 5:8] == 4).all() and (picture[1:3, 9:12] == 2).all()
    assert (picture[:, 0] == 255).all() and (picture[4:6, 9:] == 255).all()


def test_figure3b_keeps_students_measured_at_several_w(metrics):
    points = figures.figure3b_points(metrics.rows)
    scales = points[(points["student"] == "SPLAM (scaled input)") & (points["skip"] == 20)]["guidance_scale"]
    assert list(scales) == [3, 5, 8, 12]
    figure = figures.figure3b(points, "FID", "CLIP score (tiny, in-domain)")
    assert "CLIP score (tiny, in-domain)" in figure.axes[0].get_xlabel()


def pictures(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 8, 8, 3), dtype=np.uint8)


def shown(figure) -> list[np.ndarray]:
    return [np.asarray(axis.images[0].get_array()) for axis in figure.axes]


def test_picture_figures_put_each_image_in_its_cell():
    images = pictures(2, 4)
    drawn = shown(figures.figure3a(images, ["a", "b"], [3, 5, 8, 12]))
    np.testing.assert_array_equal(np.stack(drawn), np.swapaxes(images, 0, 1).reshape(8, 8, 8, 3))

    images = pictures(2, 3, 2)  # methods, steps, prompts: columns go LCM 1, SPLAM 1, LCM 2, ...
    teacher = pictures(2)
    grid = shown(figures.figure4(images, ["LCM", "SPLAM"], [1, 2, 4], ["a", "b"], teacher, 50))
    np.testing.assert_array_equal(grid[2 * 3 + 1], images[1, 1, 1])  # column SPLAM 2 steps, prompt b
    np.testing.assert_array_equal(np.stack(grid[-2:]), teacher)

    images = pictures(3, 2)
    drawn = shown(figures.figure5(images, ["x", "y", "z"], ["a", "b"]))
    np.testing.assert_array_equal(np.stack(drawn), images.reshape(6, 8, 8, 3))


def test_a_grid_of_the_wrong_shape_is_an_error():
    with pytest.raises(ValueError, match="need 3 rows"):
        figures.picture_grid(pictures(2, 2), ["a", "b", "c"], ["x", "y"], "title")


def test_forest_draws_every_measured_claim_in_the_panel_of_its_unit(metrics):
    parts = claims.claim_parts(metrics.rows, metrics.delta, metrics.latency, metrics.floors)
    some = parts[parts["id"].isin(["C1", "C3", "C14"])]
    figure = figures.claims_forest(some)
    measured = some[some["estimate"].notna()]
    assert len(figure.axes) == measured["unit"].nunique() == 3
    assert sum(len(axis.get_yticks()) for axis in figure.axes) == len(measured)
    low, high = figure.axes[0].get_xlim()
    assert low < measured.loc[measured["id"] == "C1", "low"].min() < high


def test_forest_of_nothing_says_so():
    empty = claims.evaluate_claims(*[pd.DataFrame()] * 4)
    assert figures.claims_forest(empty).axes[0].texts[0].get_text() == "nothing measured"


def test_equal_input_gives_equal_bytes(metrics):
    points = figures.figure2b_points(metrics.rows)
    first, second = (figures.png(figures.figure2b(points, "FID")) for _ in range(2))
    assert first == second
    assert b"matplotlib" not in first
    assert len(figures.small_png(figures.figure2b(points, "FID"))) < len(first) / 2


def test_methods_have_colours_of_their_own():
    students = ["LCM", "SPLAM (raw input)", "SPLAM (scaled input)", "SPLAM (equal-SNR time)", "Teacher"]
    assert len({figures.COLOURS[s] for s in students}) == len(students)
    assert figures.student_name({"method": "LCM (fix w)", "variant": ""}) == "LCM"
