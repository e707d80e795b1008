"""Shards of a few small images, and settings over them."""

import io
import itertools
from pathlib import Path

import pytest
import torch
from PIL import Image

from splam.config import CocoData, PictureData
from splam.data.pictures import survey
from splam.data.streams import Stream, training_images
from tests.standins.sd import write_tar


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    """An image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def encoded(colour: int, size: tuple[int, int] = (12, 8)) -> bytes:
    """An image file of one shade of red."""
    return encode(Image.new("RGB", size, (colour, 0, 0)))


def sample(number: int) -> dict[str, bytes]:
    """The members of a sample whose caption is its number."""
    return {"png": encoded(number), "txt": str(number).encode()}


def write_shard(path, samples) -> str:
    """samples: {key: {suffix: bytes}}."""
    write_tar(path, ((f"{key}.{end}", data) for key, content in samples.items() for end, data in content.items()))
    return str(path)


def surveyed(settings, folder: Path) -> Path:
    """The folder, with what the data stage writes where no test set is wanted."""
    survey(settings.model_copy(update={"test_images": 0}), folder)
    return folder


@pytest.fixture
def opened(tmp_path_factory):
    """A stream over settings, after the data stage's survey of them."""

    def stream(settings, *arguments, **more) -> Stream:
        images = training_images(settings, surveyed(settings, tmp_path_factory.mktemp("survey")))
        return Stream(images, *arguments, workers=settings.workers, **more)

    return stream


def laion_settings(*shards, **changes) -> PictureData:
    """Settings of 16-pixel images that are read in this process."""
    base = dict(kind="laion", resolution=16, workers=0, max_broken_share=0.1, held_out_share=0.1)
    base |= {"smallest_side": 8, "test_images": 2, "coco": CocoData(folder="coco")}
    return PictureData.model_validate({**base, "shards": [str(shard) for shard in shards], **changes})


def take(stream, count, start=0):
    """The stream's batches from number `start` on, `count` of them."""
    return list(itertools.islice(stream.batches(start), count))


def same(batches, others) -> bool:
    """Whether pixels and captions are the same, bit by bit."""
    return all(torch.equal(x[0], y[0]) and x[1] == y[1] for x, y in zip(batches, others, strict=True))


@pytest.fixture
def laion(laion_folder):
    """Settings over the three shards of the stand-ins."""
    return lambda **changes: laion_settings(laion_folder / "{00000..00002}.tar", **changes)
