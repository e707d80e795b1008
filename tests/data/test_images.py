"""Pictures of every form as they are meant, and pixels."""

import numpy as np
import pytest
import torch
from PIL import Image

from splam.data.images import DataError, SizeError, decode, to_pixels
from tests.data.conftest import encode


def test_pixels_are_channels_first_from_minus_one_to_one():
    images = np.zeros((1, 2, 3, 3), np.uint8)
    images[0, 1, 2] = (255, 0, 51)
    pixels = to_pixels(images)
    assert pixels.shape == (1, 3, 2, 3) and pixels.min() == -1
    torch.testing.assert_close(pixels[0, :, 1, 2], torch.tensor([1.0, -1.0, -0.6]))


def marked(mode: str, colour) -> Image.Image:
    """Transparent but for one half, which has a colour."""
    image = Image.new(mode, (8, 8))
    image.paste(colour, (0, 0, 4, 8))
    return image


def palette() -> Image.Image:
    image = marked("L", 1).convert("P")
    image.putpalette([255, 0, 0, 0, 0, 0])
    return image


@pytest.mark.parametrize(
    "data, left, right",
    [
        (encode(Image.fromarray(np.full((8, 8), 0x8012, np.uint16))), 0x80, 0x80),
        (encode(marked("RGBA", (0, 0, 0, 128))), 127, 255),  # a black logo that shines through
        (encode(marked("LA", (0, 255))), 0, 255),
        (encode(palette(), transparency=0), 0, 255),
        (encode(marked("L", 9), transparency=0), 9, 255),
    ],
)
def test_every_form_of_pixels_is_seen_as_it_is_meant(data, left, right):
    image = decode(data, 8)
    assert (image[:, 0] == left).all() and (image[:, -1] == right).all()


def test_pixels_of_no_known_range_are_refused():
    with pytest.raises(DataError, match="mode 'F'.*convert it to 8 bits"):
        decode(encode(Image.new("F", (8, 8), 0.5), "TIFF"), 8)
    with pytest.raises(DataError, match="mode 'I;16'.*convert it to 8 bits"):  # which of the greys is transparent
        decode(encode(Image.new("I;16", (8, 8)), transparency=0), 8)


def test_photos_stand_upright():
    """Orientation 6 is the camera's 90 degrees: the top of the scene lies on the left of the file."""
    scene = Image.new("RGB", (8, 8))
    scene.paste((255, 0, 0), (0, 0, 8, 4))
    scene.paste((0, 255, 0), (0, 0, 4, 4))
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = encode(scene.transpose(Image.Transpose.ROTATE_90), exif=exif)
    assert (decode(stored, 8) == np.asarray(scene)).all()


def test_pictures_that_no_square_fits_are_refused():
    for size, fit in (((1, 1), (2, 8)), ((3000, 1), (1, 8)), ((7, 57), (7, 8)), ((63, 64), (64, 8))):
        with pytest.raises(SizeError, match=f"{size[0]}x{size[1]} pixels"):
            decode(encode(Image.new("L", size)), 8, fit=fit)
    assert decode(encode(Image.new("L", (7, 56))), 8, fit=(7, 8)).shape == (8, 8, 3)
