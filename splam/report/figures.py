"""Plotted figures (figures.yaml), and grids of images (3a, 4, 5, and one over all systems)."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from splam.report.metrics import Metrics, where

CONTENT = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
FIGURES: dict[str, dict[str, Any]] = CONTENT["figures"]
STYLES: dict[str, list[str]] = CONTENT["styles"]  # colour and marker
STUDENTS = ("LCM (fix w)", "SPLAM")


def named(rows: pd.DataFrame, methods: tuple[str, ...]) -> pd.DataFrame:
    """Rows of some methods with their name in figures as `student`, and multiple estimation as a bool `me`."""
    rows = where(rows, method=methods)
    names = rows["method"].replace("LCM (fix w)", "LCM").where(rows["variant"] == "", "SPLAM (" + rows["variant"] + ")")
    return rows.assign(student=names, me=rows["multiple_estimation"].isin([True]))


def average(rows: pd.DataFrame, keys: list[str], *values: str) -> pd.DataFrame:
    """Means over seeds for each combination of keys: columns keys, VALUE, VALUE_se, seeds.

    VALUE_se: the standard error over seeds; of a single one the rows' own, if they have any.
    """
    groups, found = rows.dropna(subset=[values[0]]).groupby(keys, sort=True, dropna=False), {}
    for value in values:
        own = groups[f"{value}_se"].mean() if f"{value}_se" in rows else None
        found |= {value: groups[value].mean(), f"{value}_se": groups[value].sem().fillna(own)}
    return pd.DataFrame({**found, "seeds": groups.size()}).reset_index()


def with_series(points: pd.DataFrame) -> pd.DataFrame:
    """Points with the name of their line as `series`: 'SPLAM (scaled input), k = 100 + ME'."""
    path = [f", k = {k:g}" + " + ME" * bool(me and k > 20) for k, me in zip(points["skip"], points["me"], strict=True)]
    path = pd.Series(path, index=points.index, dtype=object).where(points["skip"].notna(), "")
    return points.assign(series=points["student"] + path)


def figure2a_points(metrics: Metrics) -> pd.DataFrame:
    """FID against k at w = 3, 4 steps; the teacher has no k.

    At k = 20 multiple estimation is one DDIM step, so that point belongs to both of a student's lines.
    """
    rows = where(metrics.rows, final=True, dataset="unseen", guidance_scale=3)
    students = named(where(rows, steps=4), STUDENTS)
    near, far = students[students["skip"] <= 20], students[students["skip"] > 20]
    lines = pd.concat([far, near[~near["student"].isin(far["student"])]])[["student", "me"]].drop_duplicates()
    both = near.drop(columns="me").merge(lines, on="student")
    points = average(pd.concat([both, far, named(rows, ("Teacher",))]), ["student", "me", "skip"], "fid")
    return points.assign(series=points["student"] + [" + ME" * bool(me) for me in points["me"]])


def figure2b_points(metrics: Metrics) -> pd.DataFrame:
    """FID over training at w = 3, to real images and to the teacher's, and of the undistilled network (iteration 0)."""
    rows = named(where(metrics.rows, dataset="unseen-curve", guidance_scale=3), (*STUDENTS, "Undistilled"))
    return with_series(average(rows, ["student", "me", "skip", "iteration"], "fid", "fid_teacher"))


def figure2c_points(metrics: Metrics) -> pd.DataFrame:
    """delta(t, 20) and the x0 error."""
    keys = ["student", "guidance_scale", "run", "t"]
    points = average(named(metrics.delta, STUDENTS), keys, "delta_rms", "delta_l2", "x0_error_rms")
    several = points.groupby("student")["run"].nunique().max() > 1
    return points.assign(series=points["student"] + (", " + points["run"] if several else ""))


def figure3b_points(metrics: Metrics) -> pd.DataFrame:
    """FID and CLIP score at the w of every student, and of the teacher, that was measured at several."""
    rows = where(metrics.rows, final=True, dataset="unseen")
    rows = pd.concat([named(where(rows, steps=4), STUDENTS), named(rows, ("Teacher",))])
    points = with_series(average(rows, ["student", "skip", "me", "guidance_scale"], "fid", "clip_score"))
    return points[points.groupby("series")["series"].transform("size") > 1].reset_index(drop=True)


def distance_points(metrics: Metrics, along: str, **at: float) -> pd.DataFrame:
    """Distance from the teacher's solution at w = 3 along a column, the mean over the other where it is not fixed.

    Of students at k = 20 and at k = 100 + ME, and of the undistilled network.
    """
    evaluated = ("", *where(metrics.rows, dataset="unseen")["run"].unique())  # not the longer trainings of Fig. 2b
    rows = named(where(metrics.errors, guidance_scale=3, run=evaluated, **at), (*STUDENTS, "Undistilled"))
    rows = rows[rows["skip"].isna() | (rows["skip"] == 20) | ((rows["skip"] == 100) & rows["me"])]
    keys = ["student", "me", "skip", along]
    means = rows.groupby([*keys, "seed"], dropna=False)["rmse"].mean().reset_index()
    return with_series(average(means, keys, "rmse"))


def plotted_points(metrics: Metrics) -> dict[str, pd.DataFrame]:
    """The points of each figure that has a student, by name."""
    found = {"figure2a": figure2a_points(metrics), "figure2b": figure2b_points(metrics)}
    found |= {"figure2c": figure2c_points(metrics), "figure3b": figure3b_points(metrics)}
    found |= {"along_t": distance_points(metrics, "t", gamma=1.0), "along_gamma": distance_points(metrics, "gamma")}
    return {name: p for name, p in found.items() if set(p["student"]) - {"Teacher", "Undistilled"}}


def plot(name: str, points: pd.DataFrame, metrics: Metrics) -> Figure:
    """A figure of figures.yaml, whose words {fid} and {clip} stand for the metrics' names."""
    labels = {"fid": metrics.fact("fid_name"), "clip": metrics.fact("clip_name")}
    panels = [panel for panel in FIGURES[name]["panels"] if points[panel["y"]].notna().any()]
    figure = Figure((1 + 4.4 * len(panels), 4), layout="constrained", facecolor="white")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        _lines(axis, points, panel)
        _scales(axis, points, panel)
        axis.set(xlabel=panel["xlabel"].format(**labels), ylabel=panel["ylabel"].format(**labels))
        axis.set_title(textwrap.fill(panel["title"], 78 if len(panels) == 1 else 52), loc="left", fontsize=10.5)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="#dddddd", linewidth=0.7)
    axes[0].legend(fontsize=8, frameon=False)
    return figure


def _lines(axis: Axes, points: pd.DataFrame, panel: dict[str, Any]) -> None:
    """A line for each series; what has no x, and the undistilled network where it has but one, is a level."""
    x, y = panel["x"], panel["y"]
    single = points.groupby("series")[x].transform("nunique") < 2
    level = points[x].isna() | (single & (points["student"] == "Undistilled"))
    for row in points[level].to_dict("records"):
        axis.axhline(row[y], color=STYLES[row["student"]][0], linestyle=":", linewidth=1.2, label=row["series"])
    for series, line in points[~level].groupby("series", sort=False):
        colour, marker = STYLES.get(line["student"].iloc[0], STYLES["other"])
        solid = "me" not in line or " + ME" in series or series == "Teacher"  # without multiple estimation: dashed
        style = {"color": colour, "marker": marker, "markersize": 6.5 if len(line) < 20 else 3, "capsize": 3}
        style |= {"linestyle": "-" if solid else "--", "markerfacecolor": colour if solid else "white"}
        axis.errorbar(line[x], line[y], line[f"{y}_se"], line.get(f"{x}_se"), label=series, **style)
        for row in line.to_dict("records") if "note" in panel else ():
            offset = {"xytext": (6, 5), "textcoords": "offset points"}
            axis.annotate(f"{row[panel['note']]:g}", (row[x], row[y]), fontsize=8, color=colour, **offset)


def _scales(axis: Axes, points: pd.DataFrame, panel: dict[str, Any]) -> None:
    """From 0, or logarithmic with plain numbers where the values span more than a factor of 4."""
    if panel.get("log_x"):
        ticks = sorted(points[panel["x"]].dropna().unique())
        axis.set_xscale("log")
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_xticks([], minor=True)
    if panel.get("from_zero"):
        axis.set_ylim(bottom=0)
    elif points[panel["y"]].max() > 4 * points[panel["y"]].min():
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(lambda v, _: f"{v:g}" if f"{v:.0e}"[0] in "235" else "")


def picture(images: np.ndarray, columns: Sequence[str], prompts: Sequence[str], title: str) -> Figure:
    """A labelled grid of the images that the sample stage drew: a line for each prompt, a column for each system.

    images: uint8 (columns, prompts, h, w, 3). Prompts are no formulas: "$5 and $6" is text.
    """
    figure = Figure((1.7 + 0.95 * len(columns), 0.75 + 0.95 * len(prompts)), layout="constrained", facecolor="white")
    bare = {"xticks": [], "yticks": [], "frame_on": False}
    axes = figure.subplots(len(prompts), len(columns), squeeze=False, subplot_kw=bare)
    for line, prompt, pictures in zip(axes, prompts, np.swapaxes(images, 0, 1), strict=True):
        for axis, image in zip(line, pictures, strict=True):
            axis.imshow(image, interpolation="nearest")
        line[0].set_ylabel(textwrap.fill(prompt, 22), rotation=0, ha="right", va="center", fontsize=8, parse_math=False)
    for axis, name in zip(axes[0], columns, strict=True):
        axis.set_title(textwrap.fill(name, 13), fontsize=8, parse_math=False)
    figure.suptitle(str(title), x=0.01, ha="left", fontsize=10.5, parse_math=False)
    return figure


def sheet(images: np.ndarray, columns: Sequence[str], prompts: Sequence[str], out: Path) -> dict[str, Any]:
    """Write the images of `picture` for the page, one WebP without labels, each at most 160 pixels wide.

    Returns their columns, prompts, shape and `ours`: each column's distance from the teacher's.
    """
    _, lines, height, width = images.shape[:4]
    whole = Image.fromarray(images.transpose(1, 2, 0, 3, 4).reshape(lines * height, -1, 3))
    whole.reduce(math.ceil(width / 160)).save(out, lossless=width <= 64, quality=85)
    far = [
        f"{name} {np.sqrt(np.square((own - teacher) / 255.0).mean()):.3f}"
        for teacher in images[[name.startswith("Teacher") for name in columns]].astype(float)
        for name, own in zip(columns, images, strict=True)
        if not name.startswith("Teacher")
    ]
    ours = f"root mean square difference from the teacher's images, pixels in [0, 1]: {'; '.join(far)}. "
    ours += "Students draw new noise in each step but the first, so that more steps differ more."
    facts = {"columns": list(columns), "prompts": list(prompts), "shape": (width, height)}
    return facts | {"ours": ours if far else ""}


def ends(name: str, points: pd.DataFrame) -> str:
    """What a plotted figure shows: where each of its lines starts and ends."""
    (along, place), y, texts = FIGURES[name]["along"], FIGURES[name]["panels"][0]["y"], []
    for series, line in points.dropna(subset=[along]).sort_values(along).groupby("series", sort=False):
        if line[along].nunique() > 1:
            both = [f"{row[y]:.4g} at {place.format(row[along])}" for row in (line.iloc[0], line.iloc[-1])]
            texts.append(f"{series}: {', '.join(both)}")
    return "; ".join(texts) + "."


def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG, without the notes that would change its bytes."""
    figure.savefig(path, dpi=130, metadata={"Software": None})
