"""Figures 2 to 5 and the claims: one function a figure, from saved numbers or uint8 images to a matplotlib Figure.

`figure2a_points` and its like choose and average what a figure plots; that frame is saved beside the picture.
No pyplot: nothing here needs or changes a display, and equal input gives equal bytes.
"""

from __future__ import annotations

import io
import math
import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from splam.tables import UNDISTILLED

# Okabe and Ito's palette: told apart by colour-blind readers.
COLOURS = {
    "LCM": "#0072B2",
    "LCM*": "#56B4E9",
    "LCM-LoRA": "#56B4E9",
    "SPLAM (raw input)": "#E69F00",
    "SPLAM (scaled input)": "#D55E00",
    "SPLAM (equal-SNR time)": "#CC79A7",
    "Teacher": "#000000",
}
OTHER_COLOUR = "#009E73"
MARKERS = {"LCM": "o", "SPLAM (raw input)": "^", "SPLAM (scaled input)": "s", "SPLAM (equal-SNR time)": "D"}
VERDICT_STYLES = {
    "holds": ("#009E73", "o"),
    "within noise": ("#777777", "D"),
    "does not hold": ("#D55E00", "X"),
    "one seed, not tested": ("#0072B2", "o"),
    "better": ("#009E73", "o"),
    "worse": ("#D55E00", "X"),
}
INK, GRID = "#222222", "#dddddd"
DPI = 130


def png(figure: Figure) -> bytes:
    """The figure as PNG, without the date and software notes that would change its bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def small_png(figure: Figure) -> bytes:
    """A plot as a PNG of 32 colours, a quarter of the size, to be put into a page."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(png(figure))).convert("RGB").quantize(32).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _canvas(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure (inches) with a row of plain axes."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    axes = list(np.atleast_1d(figure.subplots(1, columns)))
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color=GRID, linewidth=0.7)
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=9)
    return figure, axes


def _title(axis: Axes, text: str, width: int = 78) -> None:
    axis.set_title("\n".join(textwrap.wrap(text, width)), loc="left", fontsize=10.5, color=INK)


def student_name(row: dict[str, object]) -> str:
    """A row's method as figures name it: 'LCM', 'SPLAM (scaled input)', 'Teacher', ..."""
    method = "LCM" if row["method"] == "LCM (fix w)" else str(row["method"])
    return f"{method} ({row['variant']})" if method == "SPLAM" and row["variant"] else method


def _style(student: str, with_me: bool) -> dict[str, object]:
    """Colour and marker of a method; multiple estimation is a filled marker on a solid line."""
    colour = COLOURS.get(student, OTHER_COLOUR)
    face = colour if with_me else "white"
    line = "-" if with_me else "--"
    marker = MARKERS.get(student, "o")
    return {"color": colour, "marker": marker, "markerfacecolor": face, "linestyle": line, "markersize": 6.5}


def _finished(rows: pd.DataFrame, dataset: str = "unseen") -> pd.DataFrame:
    return rows[(rows["dataset"] == dataset) & ~rows["final"].isin([False])]


def average(rows: pd.DataFrame, keys: list[str], metrics: tuple[str, ...] = ("fid",)) -> pd.DataFrame:
    """Means and standard errors over seeds for each combination of keys; columns keys, METRIC, METRIC_se, seeds."""
    groups = rows.dropna(subset=list(metrics)).groupby(keys, sort=True, dropna=False)
    columns: dict[str, pd.Series] = {}
    for metric in metrics:
        columns[metric] = groups[metric].mean()
        columns[f"{metric}_se"] = groups[metric].sem()
    return pd.DataFrame({**columns, "seeds": groups.size()}).reset_index()


def _students(rows: pd.DataFrame, methods: tuple[str, ...]) -> pd.DataFrame:
    """Rows of some methods with their figure name as `student`, and multiple estimation as a bool `me`."""
    rows = rows[rows["method"].isin(methods)]
    names = [student_name(row) for row in rows.to_dict("records")]
    return rows.assign(student=names, me=rows["multiple_estimation"].isin([True]))


def _log_if_wide(axis: Axes, values: pd.Series) -> None:
    """A logarithmic axis, with plain numbers, where the values span more than a factor of 4."""
    if len(values) and values.max() > 4 * values.min():
        axis.set_yscale("log")
    axis.yaxis.set_major_formatter(lambda v, _: f"{v:g}")
    axis.yaxis.set_minor_formatter(lambda v, _: f"{v:g}" if f"{v:.0e}"[0] in "235" else "")
    axis.tick_params(axis="y", which="minor", labelsize=8)


def figure2a_points(rows: pd.DataFrame) -> pd.DataFrame:
    """FID against k at w = 3, 4 steps: student, me, skip, fid, fid_se, seeds; the teacher as a row without k.

    At k = 20 multiple estimation is one DDIM step, so that point belongs to both of a student's lines.
    """
    rows = _finished(rows)
    rows = rows[rows["guidance_scale"] == 3]
    students = _students(rows[rows["steps"] == 4], ("LCM (fix w)", "SPLAM"))
    several = students[students["skip"] > 20].groupby("student")["me"].unique()
    shared = students[students["skip"] <= 20]
    twice = [shared[shared["student"] == name].assign(me=me) for name, found in several.items() for me in found]
    lone = shared[~shared["student"].isin(several.index)]
    points = pd.concat([students[students["skip"] > 20], *twice, lone])
    teacher = _students(rows, ("Teacher",)).assign(skip=math.nan)
    return average(pd.concat([points, teacher]), ["student", "me", "skip"])


def figure2a(points: pd.DataFrame, metric: str) -> Figure:
    """FID against the skipping step k, with and without multiple estimation (ME)."""
    figure, (axis,) = _canvas(6.4, 4.2)
    students = points.dropna(subset=["skip"])
    for (student, me), line in students.groupby(["student", "me"]):
        style = _style(student, me)
        label = student + " + ME" * bool(me)
        axis.errorbar(line["skip"], line["fid"], line["fid_se"], label=label, capsize=3, **style)
    for value in points.loc[points["skip"].isna(), "fid"]:
        axis.axhline(value, color="black", linestyle=":", linewidth=1.2, label="Teacher")
    ticks = sorted(students["skip"].unique())
    axis.set_xscale("log")
    axis.set_xticks(ticks, [f"{k:g}" for k in ticks])
    axis.set_xticks([], minor=True)
    _log_if_wide(axis, points["fid"])
    axis.set_xlabel("skipping step k")
    axis.set_ylabel(metric)
    _title(axis, "FID against the skipping step, w = 3, 4 steps (lower is better)")
    axis.legend(fontsize=8, frameon=False)
    return figure


def figure2b_points(rows: pd.DataFrame) -> pd.DataFrame:
    """FID over training at w = 3, to real images and to the teacher's, and of the undistilled network (iteration 0).

    Columns: student, me, skip, iteration, fid, fid_se, seeds, fid_teacher, fid_teacher_se.
    """
    rows = rows[(rows["dataset"] == "unseen-curve") & (rows["guidance_scale"] == 3)]
    rows = _students(rows[rows["steps"] == rows["steps"].max()], ("LCM (fix w)", "SPLAM", UNDISTILLED))
    keys = ["student", "me", "skip", "iteration"]
    nearer = average(rows, keys, ("fid_teacher",)).drop(columns="seeds")
    return average(rows, keys).merge(nearer, how="left", on=keys)


def figure2b(points: pd.DataFrame, metric: str) -> Figure:
    """FID against iterations of training: to real images, and to the teacher's where it was measured."""
    panels = {"fid": metric}
    if points["fid_teacher"].notna().any():
        panels["fid_teacher"] = f"{metric} to the teacher's images"
    figure, axes = _canvas(6.4 if len(panels) == 1 else 10.4, 4.2, len(panels))
    for axis, (column, name) in zip(axes, panels.items(), strict=True):
        _training_curves(axis, points, column)
        axis.set_ylabel(name)
    _title(axes[0], "FID while training, w = 3, on a smaller sample (lower is better)", 60)
    axes[0].legend(fontsize=8, frameon=False)
    return figure


def _training_curves(axis: Axes, points: pd.DataFrame, column: str) -> None:
    start = points[points["student"] == UNDISTILLED]
    for value in start[column].dropna():
        axis.axhline(value, color="0.5", linestyle=":", label="undistilled")
    for (student, me, skip), line in points.drop(start.index).groupby(["student", "me", "skip"]):
        with_me = bool(me) and skip > 20
        label = f"{student}, k = {skip:g}" + " + ME" * with_me
        style = _style(student, with_me)
        axis.errorbar(line["iteration"], line[column], line[f"{column}_se"], label=label, capsize=3, **style)
    _log_if_wide(axis, points[column].dropna())
    axis.set_xlabel("iterations")


def figure2c_points(delta: pd.DataFrame) -> pd.DataFrame:
    """delta(t, 20) and the x0 error: student, guidance_scale, run, t, delta_rms and its error, delta_l2, x0_error_rms.

    The standard error is over seeds where there are several, else over the images of the one seed.
    """
    delta = delta.assign(student=[student_name(row) for row in delta.to_dict("records")])
    groups = delta.groupby(["student", "guidance_scale", "run", "t"], sort=True)
    points = groups[["delta_rms", "delta_l2", "x0_error_rms"]].mean()
    for column in ("delta_rms", "delta_l2"):
        points[f"{column}_se"] = groups[column].sem().fillna(groups[f"{column}_se"].mean())
    return points.assign(seeds=groups.size()).reset_index()


def figure2c(points: pd.DataFrame) -> Figure:
    """delta(t, 20) against t, and beside it the x0 error, without which a constant map would look best."""
    figure, (left, right) = _canvas(9.6, 4.0, columns=2)
    several = points.groupby("student")["run"].nunique().max() > 1
    for (student, _, run), line in points.groupby(["student", "guidance_scale", "run"]):
        style = _style(student, True) | {"markersize": 3}
        label = f"{student}, {run}" if several else student
        left.errorbar(line["t"], line["delta_rms"], line["delta_rms_se"], label=label, capsize=1.5, **style)
        right.plot(line["t"], line["x0_error_rms"], label=label, **style)
    scales = ", ".join(f"{w:g}" for w in sorted(points["guidance_scale"].unique()))
    _title(left, f"Change between neighbouring times, w = {scales} (lower is more consistent)", 58)
    _title(right, "Distance from the clean latent (a constant map has δ = 0)", 58)
    left.set_ylabel("δ(t, 20), RMS over latents")
    right.set_ylabel("x0 error, RMS over latents")
    for axis in (left, right):
        axis.set_xlabel("t")
        axis.set_ylim(bottom=0)
    left.legend(fontsize=8, frameon=False)
    return figure


def figure3b_points(rows: pd.DataFrame) -> pd.DataFrame:
    """FID and CLIP score at several w: student, skip, me, guidance_scale, fid, clip_score, errors, seeds."""
    rows = _finished(rows)
    students = _students(rows[rows["steps"] == 4], ("LCM (fix w)", "SPLAM"))
    teacher = _students(rows, ("Teacher",))
    keys = ["student", "skip", "me", "guidance_scale"]
    points = average(pd.concat([students, teacher]), keys, ("fid", "clip_score"))
    counts = points.groupby(keys[:3], dropna=False)["guidance_scale"].transform("nunique")
    return points[counts > 1].reset_index(drop=True)


def figure3b(points: pd.DataFrame, metric: str, clip_metric: str) -> Figure:
    """The trade-off of FID and CLIP score as the guidance scale w grows; each point carries its w."""
    figure, (axis,) = _canvas(6.4, 4.4)
    for (student, skip, me), line in points.groupby(["student", "skip", "me"], dropna=False):
        with_me = bool(me) and skip > 20
        path = "" if math.isnan(skip) else f", k = {skip:g}" + " + ME" * with_me
        errors = {"yerr": line["fid_se"], "xerr": line["clip_score_se"], "capsize": 3}
        style = _style(student, with_me or math.isnan(skip))
        axis.errorbar(line["clip_score"], line["fid"], label=student + path, **errors, **style)
        for _, point in line.iterrows():
            at = (point["clip_score"], point["fid"])
            offset = {"xytext": (6, 5), "textcoords": "offset points"}
            axis.annotate(f"{point['guidance_scale']:g}", at, fontsize=8, color=style["color"], **offset)
    _log_if_wide(axis, points["fid"])
    axis.set_xlabel(f"{clip_metric} (higher is better)")
    axis.set_ylabel(metric)
    _title(axis, "FID against CLIP score; numbers are w; students take 4 steps")
    axis.legend(fontsize=8, frameon=False)
    return figure


SUBPATH_TERMS = {
    "error": ("residual of Eq. 15", "#000000"),
    "error_zero": ("error 0, of dist_0", "#0072B2"),
    "error_delta": ("error Δ, of dist_Δ", "#D55E00"),
}
METRIC_NAMES = {
    "fid": "FID",
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
    "clip_score": "CLIP score",
    "paired_distance": "paired distance",
}


def count_study(draws: pd.DataFrame, metric: str) -> Figure:
    """FID and KID of disjoint draws of real images against their number: set, images, fid, kid (splam.studies)."""
    figure, axes = _canvas(9.2, 3.8, 2)
    for axis, column in zip(axes, ("fid", "kid"), strict=True):
        for colour, (name, rows) in zip(("#0072B2", "#D55E00"), draws.groupby("set", sort=False), strict=False):
            mean = rows.groupby("images")[column].mean()
            axis.plot(rows["images"], rows[column], ".", color=colour, alpha=0.5, markersize=5)
            axis.plot(mean.index, mean, "-", color=colour, linewidth=1.4, label=name)
        ticks = sorted(draws["images"].unique())
        axis.set_xscale("log")
        axis.set_xticks(ticks, [f"{n:,}" for n in ticks])
        axis.set_xticks([], minor=True)
        axis.set_xlabel("images of one draw")
        axis.set_ylabel(metric if column == "fid" else metric.replace("FID", "KID"))
    _title(axes[0], "FID of disjoint draws, and its mean", 46)
    _title(axes[1], "KID of the same draws", 46)
    axes[0].legend(fontsize=8, frameon=False)
    return figure


def damage_study(rows: pd.DataFrame, directions: pd.DataFrame, units: dict[str, str]) -> Figure:
    """Every metric (a row) under every damage (a column): green goes as it must, red does not, grey is left open.

    rows: damage, strength and the metrics; directions: damage, metric, as_expected; units: of the strengths.
    """
    damages = list(units)
    figure = Figure(figsize=(10.5, 10), layout="constrained", facecolor="white")
    axes = figure.subplots(len(METRIC_NAMES), len(damages), sharex="col", sharey="row")
    verdicts = directions.set_index(["damage", "metric"])["as_expected"]
    colours = {True: "#009E73", False: "#D55E00"}
    for line, (metric, name) in zip(axes, METRIC_NAMES.items(), strict=True):
        for axis, damage in zip(line, damages, strict=True):
            found = rows[rows["damage"] == damage]
            colour = colours.get(verdicts[(damage, metric)], "#777777")
            axis.plot(found["strength"], found[metric], "o-", color=colour, markersize=4)
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(color=GRID, linewidth=0.7)
            axis.tick_params(labelsize=8)
        line[0].set_ylabel(name, fontsize=9)
    for top, bottom, damage in zip(axes[0], axes[-1], damages, strict=True):
        top.set_title(damage, fontsize=10, color=INK)
        bottom.set_xlabel(units[damage], fontsize=8)
    return figure


def subpath_errors(errors: pd.DataFrame) -> Figure:
    """A run's errors of dist_0 and dist_Delta: along t at gamma = 1 (above), along gamma at three t (below).

    errors: system, t, gamma, error, error_zero, error_delta, and the last three with _se (splam.subpath_errors).
    """
    names = list(dict.fromkeys(errors["system"]))
    figure = Figure(figsize=(3.4 * len(names), 5.6), layout="constrained", facecolor="white")
    axes = figure.subplots(2, len(names), sharex="row", sharey="row", squeeze=False)
    times = sorted(errors["t"].unique())
    shown = sorted({times[0], times[len(times) // 2], times[-1]})
    for (above, below), name in zip(axes.T, names, strict=True):
        rows = errors[errors["system"] == name]
        for column, (label, colour) in SUBPATH_TERMS.items():
            whole = rows[rows["gamma"] == 1]
            style = {"color": colour, "capsize": 2, "markersize": 3.5}
            above.errorbar(whole["t"], whole[column], whole[f"{column}_se"], fmt="o-", label=label, **style)
            for t, line in zip(shown, (":", "--", "-"), strict=False):
                there = rows[rows["t"] == t]
                label = f"t = {t}" if column == "error" else None
                values = there[column].replace(0, math.nan)  # error Δ at gamma = 0
                below.plot(there["gamma"], values, line, color=colour, label=label)
        above.set(title=f"{name}, γ = 1", xlabel="t", yscale="log")
        below.set(xlabel="γ", yscale="log")
    for axis in axes.ravel():
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color=GRID, linewidth=0.7)
        axis.tick_params(labelsize=8)
        axis.title.set_fontsize(9)
    for axis in axes[:, 0]:
        axis.set_ylabel("root mean square, units of z")
        axis.legend(fontsize=7.5, frameon=False)
    return figure


def picture_grid(
    images: np.ndarray, rows: list[str], columns: list[str], title: str, gap_after: tuple[int, ...] = ()
) -> Figure:
    """A labelled grid of images, uint8 (rows, columns, h, w, 3); a wider gap follows the columns in gap_after."""
    if images.shape[:2] != (len(rows), len(columns)):
        raise ValueError(f"images of shape {images.shape} need {len(rows)} rows and {len(columns)} columns")
    cell, left, gap = 0.95, 1.7, 0.14
    tops = 0.75
    width = left + cell * len(columns) + gap * len(gap_after)
    height = tops + cell * len(rows)
    figure = Figure(figsize=(width, height), facecolor="white")
    for c, column in enumerate(columns):
        x = left + c * cell + gap * sum(g < c for g in gap_after)
        for r, name in enumerate(rows):
            y = height - tops - (r + 1) * cell
            axis = figure.add_axes((x / width, y / height, (cell - 0.05) / width, (cell - 0.05) / height))
            axis.imshow(images[r, c], interpolation="nearest")
            axis.axis("off")
            if c == 0:
                text = "\n".join(textwrap.wrap(name, 22))
                figure.text((left - 0.1) / width, (y + cell / 2) / height, text, ha="right", va="center", fontsize=8)
        at = (x + cell / 2) / width, (height - tops + 0.06) / height
        figure.text(*at, "\n".join(textwrap.wrap(column, 13)), ha="center", va="bottom", fontsize=8)
    figure.text(0.1 / width, (height - 0.12) / height, title, ha="left", va="top", fontsize=10.5, color=INK)
    return figure


def mosaic(images: np.ndarray, columns: int, gap: int = 2) -> np.ndarray:
    """Images uint8 (n, h, w, 3) in rows of `columns`, on white, `gap` pixels apart: uint8 (height, width, 3)."""
    count, h, w, _ = images.shape
    rows = -(-count // columns)
    canvas = np.full((rows * (h + gap) + gap, columns * (w + gap) + gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = gap + i // columns * (h + gap), gap + i % columns * (w + gap)
        canvas[top : top + h, left : left + w] = image
    return canvas


def figure3a(images: np.ndarray, prompts: list[str], guidance_scales: list[float]) -> Figure:
    """One prompt a row, one guidance scale a column: uint8 (prompts, w, h, w, 3)."""
    columns = [f"w = {w:g}" for w in guidance_scales]
    return picture_grid(images, prompts, columns, "SPLAM at several guidance scales, same noise")


def figure4(
    images: np.ndarray,
    methods: list[str],
    steps: list[int],
    prompts: list[str],
    teacher: np.ndarray,
    teacher_steps: int,
) -> Figure:
    """LCM beside SPLAM at each step count, and the teacher, from the same noise.

    images: uint8 (methods, steps, prompts, h, w, 3); teacher: uint8 (prompts, h, w, 3).
    """
    columns = [f"{m} {n} step{'s' * (n > 1)}" for n in steps for m in methods]
    grid = np.transpose(images, (2, 1, 0, 3, 4, 5)).reshape(len(prompts), len(columns), *images.shape[3:])
    grid = np.concatenate([grid, teacher[:, None]], axis=1)
    columns = [*columns, f"Teacher {teacher_steps} steps"]
    gaps = tuple(len(methods) * (i + 1) - 1 for i in range(len(steps)))
    return picture_grid(grid, prompts, columns, f"{' and '.join(methods)}, same noise in each row", gaps)


def figure5(images: np.ndarray, columns: list[str], prompts: list[str]) -> Figure:
    """SPLAM beside other methods and the teacher: uint8 (columns, prompts, h, w, 3)."""
    return picture_grid(np.swapaxes(images, 0, 1), prompts, columns, "The same prompts and noise, method by method")


def _values(text: object) -> list[float]:
    """Per-seed values as claim parts store them: numbers separated by spaces."""
    return [float(v) for v in str(text).split()] if isinstance(text, str) else []


def _limits(panel: pd.DataFrame) -> tuple[float, float]:
    """Where a panel's axis ends: all estimates, intervals and finite margins, and 0."""
    numbers = panel[["estimate", "low", "high", "accept_low", "accept_high"]].to_numpy(float)
    seeds = [v for text in panel.get("values", pd.Series(dtype=object)) for v in _values(text)]
    finite = np.append(numbers[np.isfinite(numbers)], [0.0, *seeds])
    margin = 0.08 * (np.ptp(finite) or 1.0)
    return finite.min() - margin, finite.max() + margin


def claims_forest(claims: pd.DataFrame, title: str = "") -> Figure:
    """Each claim's (or part's) estimate with its interval over seeds, on the region it should lie in (green).

    claims: rows of evaluate_claims or claim_parts; those not measured are left out. One panel for each unit.
    """
    shown = claims[claims["estimate"].notna()]
    units = list(dict.fromkeys(shown["unit"]))
    panels = [shown[shown["unit"] == unit] for unit in units]
    heights = [len(panel) + 1.6 for panel in panels] or [1]
    extra = 0.4 if title else 0.1
    figure = Figure(figsize=(8.6, 0.24 * sum(heights) + extra), layout="constrained", facecolor="white")
    axes = np.atleast_1d(figure.subplots(max(1, len(panels)), 1, height_ratios=heights))
    for axis, unit, panel in zip(axes, units, panels, strict=False):
        _forest_panel(axis, unit, panel)
    if not panels:
        axes[0].axis("off")
        axes[0].text(0, 0.5, "nothing measured")
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=10.5, color=INK)
    return figure


def _forest_panel(axis: Axes, unit: str, panel: pd.DataFrame) -> None:
    """One unit's rows, top to bottom; ln ratios are read as ratios, on a logarithmic axis."""
    low, high = _limits(panel)
    labels = []
    for y, row in enumerate(panel.to_dict("records")):
        left, right = max(row["accept_low"], low), min(row["accept_high"], high)
        axis.fill_betweenx([y - 0.42, y + 0.42], left, right, color="#009E73", alpha=0.13, linewidth=0)
        colour, marker = VERDICT_STYLES[row["verdict"]]
        if math.isfinite(row["low"]):
            axis.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=1.8)
        seeds = _values(row.get("values"))
        axis.plot(seeds, [y] * len(seeds), "|", color=colour, markersize=6, alpha=0.7)
        face = "white" if row["verdict"].startswith("one seed") else colour
        axis.plot(row["estimate"], y, marker=marker, color=colour, markerfacecolor=face, markersize=6)
        labels.append(_forest_label(row))
    axis.axvline(0, color=INK, linewidth=0.8)
    axis.set_xlim(low, high)
    axis.set_ylim(len(panel) - 0.5, -0.5)
    axis.set_yticks(range(len(panel)), labels, fontsize=7.5)
    axis.tick_params(axis="x", labelsize=7.5)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    if unit.startswith("ln ratio"):
        ratios = [v for v in MaxNLocator(7).tick_values(math.exp(low), math.exp(high)) if v > 0]
        axis.set_xticks([math.log(v) for v in ratios], [f"{v:.3g}" for v in ratios])
        axis.set_xlim(low, high)
        unit = unit.removeprefix("ln ")
    axis.set_xlabel(unit, fontsize=8)


def _forest_label(row: dict[str, object]) -> str:
    """'C7 (raw input): part'."""
    name = f"{row['id']} ({row['variant']})" if row["variant"] else str(row["id"])
    return textwrap.shorten(f"{name}: {row['part']}", 88, placeholder=" …")
