"""The overview and Figures 3a, 4 and 5: grids of the images that the sample stage drew (build/samples/NAME.npz)."""

import textwrap
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from splam.report.metrics import steps_text


def picture(name: str, samples: Path) -> Figure:
    """overview, figure3a, figure4 or figure5.

    images: uint8 (prompts, w, ...) of figure3a, (methods, steps, prompts, ...) of figure4, (columns, prompts, ...) of
    the others, each image (h, w, 3).
    """
    with np.load(samples / f"{name}.npz", allow_pickle=False) as file:
        images, found = file["images"], {key: file[key] for key in file if key != "images"}
    title = "The same prompts and noise, method by method"
    if name == "figure3a":
        title, images = "SPLAM at several guidance scales, same noise", np.swapaxes(images, 0, 1)
        columns = [f"w = {w:g}" for w in found["guidance_scales"]]
    elif name == "figure4":
        title = f"{' and '.join(found['methods'])}, same noise in each row"
        columns = [f"{method} {steps_text(n)}" for n in found["steps"] for method in found["methods"]]
        columns.append(f"Teacher {steps_text(int(found['teacher_steps']))}")
        images = np.concatenate([*np.swapaxes(images, 0, 1), found["teacher"][None]])
    else:
        columns = found["columns"].tolist()
    return picture_grid(np.swapaxes(images, 0, 1), found["prompts"].tolist(), columns, title)


def picture_grid(images: np.ndarray, rows: list[str], columns: list[str], title: str = "") -> Figure:
    """A labelled grid of images, uint8 (rows, columns, h, w, 3). Raises ValueError for other shapes."""
    if images.shape[:2] != (len(rows), len(columns)):
        raise ValueError(f"images of shape {images.shape} need {len(rows)} rows and {len(columns)} columns")
    figure = Figure((1.7 + 0.95 * len(columns), 0.75 + 0.95 * len(rows)), layout="constrained", facecolor="white")
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for line, name, pictures in zip(axes, rows, images, strict=True):
        for axis, image in zip(line, pictures, strict=True):
            axis.imshow(image, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        place = {"rotation": 0, "ha": "right", "va": "center"}
        line[0].set_ylabel("\n".join(textwrap.wrap(name, 22)), **place, fontsize=8, parse_math=False)  # "$5 and $6"
    for axis, name in zip(axes[0], columns, strict=True):
        axis.set_title("\n".join(textwrap.wrap(name, 13)), fontsize=8, parse_math=False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10.5)
    return figure
