"""Figures plot the saved numbers they were given, and give the same bytes every time."""

import math

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from splam.report import figures
from splam.report.figures import picture, plot, sheet
from splam.report.metrics import where
from splam.report.page import marks, places
from tests.report.synthetic import write_samples


@pytest.fixture
def points(report) -> dict[str, pd.DataFrame]:
    return report.points


def legend(axis) -> set[str]:
    return set(axis.get_legend_handles_labels()[1])


def test_figure2a_plots_each_student_with_and_without_me(metrics, points):
    found = points["figure2a"].set_index(["student", "me", "skip"])
    both = [found.loc[("SPLAM (scaled input)", me, 20), "fid"] for me in (True, False)]
    assert both[0] == both[1], "at k = 20 they are one"
    fids = where(metrics.rows, run="LCM (fix w)  3 100 False", dataset="unseen", steps=4)["fid"]
    cell = found.loc[("LCM", False, 100)]
    assert (cell["fid"], cell["fid_se"], cell["seeds"]) == (pytest.approx(fids.mean()), pytest.approx(fids.sem()), 3)
    axis = plot("figure2a", points["figure2a"], metrics).axes[0]
    assert {"LCM", "SPLAM (raw input) + ME", "SPLAM (scaled input)", "Teacher"} <= legend(axis)
    assert axis.get_ylabel() == "FID (EfficientNet-Lite0)"


def test_figure2b_has_a_line_for_each_student_of_the_curve(metrics, points):
    found = points["figure2b"]
    assert sorted(found["iteration"].unique()) == [0, 10, 15, 20, 25, 30, 40, 50, 60, 70, 80, 90, 100]
    axis, nearer = plot("figure2b", found, metrics).axes
    assert nearer.get_ylabel() == "FID (EfficientNet-Lite0) to the teacher"
    assert nearer.lines[0].get_ydata()[0] == pytest.approx(0.8 * 1500)  # the network undistilled
    assert len(plot("figure2b", found.assign(fid_teacher=np.nan), metrics).axes) == 1
    assert {"Undistilled", "LCM, k = 20", "SPLAM (raw input), k = 100 + ME"} <= legend(axis)


def test_figure2c_shows_the_x0_error_beside_delta(metrics, points):
    one = figures.average(figures.named(where(metrics.delta, seed=0), figures.STUDENTS), ["student", "t"], "delta_rms")
    assert len(points["figure2c"]) == len(one) == 2 * 44
    assert one["delta_rms_se"].to_numpy() == pytest.approx(one["delta_rms"] / 50), "one seed: the error over images"
    left, right = plot("figure2c", points["figure2c"], metrics).axes
    assert legend(left) == {"LCM", "SPLAM (scaled input)"}
    assert right.get_ylabel().startswith("x0 error")


def test_distances_from_the_teachers_solution_are_lines_over_t_and_levels_over_gamma(metrics, points):
    along_t, along_gamma = points["along_t"].set_index(["student", "t"]), points["along_gamma"]
    assert along_t.loc[("Undistilled", 999), "rmse"] == pytest.approx(1.998)
    ours = where(along_gamma, student="SPLAM (scaled input)").set_index("gamma")["rmse"]
    assert ours.to_dict() == pytest.approx({gamma: 0.8 * 0.519 * (2 - gamma) for gamma in (0.0, 0.5, 1.0)})
    axes = [plot(name, points[name], metrics).axes[0] for name in ("along_t", "along_gamma")]
    assert [legend(axis) for axis in axes] == [{"LCM, k = 20", "SPLAM (scaled input), k = 20", "Undistilled"}] * 2
    grey = [line for axis in axes for line in axis.lines if line.get_color() == "#808080"]
    assert [len(set(line.get_ydata())) for line in grey if line.get_linestyle() != "None"] == [3, 1]


def test_figure3b_keeps_students_measured_at_several_w(metrics, points):
    found = points["figure3b"]
    assert list(where(found, student="SPLAM (scaled input)", skip=20)["guidance_scale"]) == [3, 5, 8, 12]
    axis = plot("figure3b", found, metrics).axes[0]
    assert axis.get_xlabel() == "CLIP score (tiny, in-domain) (higher is better)"
    assert {"3", "5", "8", "12"} == {text.get_text() for text in axis.texts}


def test_a_picture_has_a_line_for_each_prompt_and_a_column_for_each_system(tmp_path):
    samples = np.load(write_samples(tmp_path / "samples") / "figure5.npz")
    figure = picture(**samples)
    shown = np.stack([np.asarray(axis.images[0].get_array()) for axis in figure.axes]).reshape(2, 4, 8, 8, 3)
    np.testing.assert_array_equal(shown, np.swapaxes(samples["images"], 0, 1))
    assert [axis.get_title() for axis in figure.axes[:4]] == ["a", "b", "c", "d"]
    assert figure.axes[4].get_ylabel().startswith("a plain pink heart")


def test_a_caption_is_text_whatever_is_in_it(tmp_path):
    caption = "two_ for $5_{ or $6^, \\frac"  # to matplotlib a formula, and a broken one
    figure = picture(np.zeros((1, 1, 8, 8, 3), np.uint8), [caption], [caption], caption)
    figures.save(figure, tmp_path / "one.png")
    assert figure.axes[0].get_ylabel().replace("\n", " ") == caption


def test_a_sheet_has_every_image_where_the_page_looks_for_it(tmp_path):
    out = tmp_path / "one.webp"
    images = np.random.default_rng(0).integers(0, 256, (3, 2, 8, 8, 3), dtype=np.uint8)
    images[2] = images[0] // 255 * 255
    facts = sheet(images, ["LCM", "SPLAM", "Teacher, 50 steps"], ["a", "b"], out)
    whole = np.asarray(Image.open(out).convert("RGB"))
    np.testing.assert_array_equal(whole[8:16, 16:24], images[2, 1])
    far = np.sqrt(np.square((images[1].astype(float) - images[2]) / 255).mean())
    assert f"SPLAM {far:.3f}" in facts["ours"] and facts["shape"] == (8, 8)


def test_a_plotted_figure_is_said_in_words(points):
    values = where(points["figure2a"], series="LCM").set_index("skip")["fid"]
    assert f"LCM: {values[20]:.4g} at k = 20, {values[200]:.4g} at k = 200" in figures.ends(
        "figure2a", points["figure2a"]
    )


def test_comparisons_lie_on_the_scale_of_their_unit(report):
    shown = places(where(report.parts, id="C1", fid_of="real images"))
    assert [row["text"].split()[0] for row in shown] == [f"{math.exp(row['estimate']):.3f}" for row in shown]
    for row in shown:
        left = row["at"]["low"] < row["at"]["estimate"] < row["at"]["high"]
        assert left and (row["at"]["estimate"] < row["at"]["zero"]) == (row["estimate"] < 0)
    one = report.verdicts.assign(verdict="fewer than three seeds, not tested")
    assert {row["state"] for row in marks(one, report.parts)["C1"]} == {"as claimed", "not as claimed"}
