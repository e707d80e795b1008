"""From encoded files to square images: the one way of cropping and resizing that all real data goes through."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image


def square(image: Image.Image, size: int, across: float = 0.5, down: float = 0.5) -> np.ndarray:
    """Crop the largest square and resize it to `size` pixels (PIL's antialiased Lanczos): uint8 (size, size, 3).

    across, down: where in the free room along the longer side the square lies, 0 to 1; 0.5 is the centre. Cropping
    first and resizing then is the same as resizing the shorter side and cropping, but for the filter at the border.
    """
    side = min(image.size)
    left, top = round((image.width - side) * across), round((image.height - side) * down)
    whole = image.convert("RGB")  # decodes: a broken file raises here
    box = (left, top, left + side, top + side)
    return np.asarray(whole.resize((size, size), Image.Resampling.LANCZOS, box=box))


def decode(data: bytes, size: int, across: float = 0.5, down: float = 0.5) -> np.ndarray:
    """`square` of an encoded image (JPEG, PNG, WebP). Raises OSError or another of PIL's errors where it is broken."""
    with Image.open(io.BytesIO(data)) as image:
        return square(image, size, across, down)


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Images uint8 (n, h, w, 3) at `size` pixels by `square`; those that have that size already are returned as is."""
    if images.shape[1:3] == (size, size):
        return images
    return np.stack([square(Image.fromarray(image), size) for image in images])


def batched(images: Iterable[np.ndarray], batch_size: int = 250) -> Iterator[np.ndarray]:
    """Single images uint8 (h, w, 3) stacked into batches of at most `batch_size`."""
    batch: list[np.ndarray] = []
    for image in images:
        batch.append(image)
        if len(batch) == batch_size:
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)
