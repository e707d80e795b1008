"""Hashes that name arrays, and pixels."""

import numpy as np
import pytest
import torch

from splam.data.images import RunningHash, array_hash, to_pixels


def test_a_hash_sees_shape_type_and_content_but_no_batches():
    array = np.arange(24).reshape(6, 4)
    others = [array.reshape(4, 6), array.astype(np.int32), array + 1, array[:5]]
    assert len({array_hash(a) for a in [array, *others]}) == 5
    running = RunningHash(6)
    for part in (array[:1], array[1:4], array[4:]):
        running.update(part)
    assert running.digits() == array_hash(array) == array_hash(np.asfortranarray(array))
    with pytest.raises(ValueError, match="5 rows were hashed, not the 6"):
        short = RunningHash(6)
        short.update(array[:5])
        short.digits()


def test_pixels_are_channels_first_from_minus_one_to_one():
    images = np.zeros((1, 2, 3, 3), np.uint8)
    images[0, 1, 2] = (255, 0, 51)
    pixels = to_pixels(images)
    assert pixels.shape == (1, 3, 2, 3) and pixels.min() == -1
    torch.testing.assert_close(pixels[0, :, 1, 2], torch.tensor([1.0, -1.0, -0.6]))
