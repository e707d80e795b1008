"""From encoded files to square images: the same crop and resize for all real data."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

Place = tuple[float, float]  # where a square lies across and down the longer side of its picture, each 0 to 1
CENTRE: Place = (0.5, 0.5)


class DataError(ValueError):
    """Data that cannot be used as it is; the message names the file and the remedy."""


class SizeError(DataError):
    """A picture of which no square can be cut that is worth training on."""


def built(path: Path, stage: str = "data") -> Path:
    """A file that a stage wrote. Raises FileNotFoundError."""
    if not path.is_file():
        target = "data.dvc" if stage == "data" else stage
        raise FileNotFoundError(f"there is no {path}: run the {stage} stage (dvc repro {target}) first")
    return path


def flat(image: Image.Image) -> Image.Image:
    """The image as 8-bit RGB: transparent on white, as img2dataset has it; 16-bit grey by its upper byte.

    Raises DataError for pixels without a known range.
    """
    if image.mode.startswith("I;16") and not image.has_transparency_data:  # PIL's own conversion clips at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode[0] in "IF":
        raise DataError(f"its pixels are of PIL's mode {image.mode!r}, whose white is not known: convert it to 8 bits")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def square(image: Image.Image, size: int, place: Place = CENTRE) -> np.ndarray:
    """Crop the largest square and resize it to `size` pixels by PIL's antialiased Lanczos: uint8 (size, size, 3)."""
    side, (across, down) = min(image.size), place
    left, top = round((image.width - side) * across), round((image.height - side) * down)
    cut = flat(image).crop((left, top, left + side, top + side))  # decodes: a broken file raises here
    return np.asarray(cut.resize((size, size), Image.Resampling.LANCZOS))  # which sees nothing beyond the square


def decode(data: bytes, size: int, place: Place = CENTRE, fit: tuple[int, float] = (1, np.inf)) -> np.ndarray:
    """`square` of an encoded image (JPEG, PNG, WebP), turned upright as its EXIF data say.

    fit: the smallest side in pixels, and the largest ratio of the sides; size 0 checks these alone, decoding nothing.
    Raises SizeError beyond them, and OSError or another of PIL's errors for a broken file.
    """
    with Image.open(io.BytesIO(data)) as image:
        short, long = sorted(image.size)
        if short < fit[0] or long > fit[1] * short:
            limits = f"data.smallest_side = {fit[0]}, data.largest_ratio = {fit[1]:g}"
            raise SizeError(f"{image.width}x{image.height} pixels, beyond {limits}")
        if not size:
            return np.empty((0, 0, 3), np.uint8)
        ImageOps.exif_transpose(image, in_place=True)
        return square(image, size, place)


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Images uint8 (n, h, w, 3) at `size` pixels by `square`; the same bytes if they have that size."""
    return np.stack([square(Image.fromarray(image), size) for image in images])


def to_pixels(images: np.ndarray) -> Tensor:
    """Images uint8 (n, h, w, 3) to pixels float32 (n, 3, h, w) in [-1, 1]."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
