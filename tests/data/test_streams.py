"""Where randomness comes from, and the tiny world's images as a stream."""

import itertools

import numpy as np
import torch

from splam.config import ShapesData
from splam.data import shapes
from splam.data.streams import Stream, batch_rows, image_stream, iteration_generator
from tests.data.conftest import laion_settings, same, sample, surveyed, take, write_shard

IMAGES = np.repeat(np.arange(5, dtype=np.uint8), 32 * 32 * 3).reshape(5, 32, 32, 3)
SPLIT = shapes.Split(IMAGES, np.array([[n, n % 4, n, n + 1] for n in range(5)], np.uint8))


def test_an_iterations_randomness_depends_on_seed_and_iteration_alone():
    draws = {(s, i): float(torch.rand((), generator=iteration_generator(s, i))) for s in (0, 1) for i in (-1, 0, 1)}
    assert len(set(draws.values())) == 6
    assert draws[1, 0] == float(torch.rand((), generator=iteration_generator(1, 0)))


def test_rows_use_the_pool_up_before_they_repeat_across_batches():
    rows = torch.cat([batch_rows(i, 4, 10, seed=3) for i in range(5)]).tolist()
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10)) and rows[:10] != rows[10:]


def test_the_tiny_worlds_images_are_a_stream_that_can_be_entered_anywhere():
    stream = Stream(SPLIT, 2, seed=0)
    line = take(stream, 5)
    assert same(take(stream, 2, start=3), line[3:])
    shown = torch.cat([pixels for pixels, _ in line])
    assert shown.shape == (10, 3, 32, 32) and len(shown[:5].unique(dim=0)) == len(shown[5:].unique(dim=0)) == 5
    levels = {caption for _, captions in itertools.chain(line, take(stream, 30)) for caption in captions}
    assert len(levels) > 5  # more than one for an image


def test_the_datas_kind_chooses_the_stream(tmp_path):
    SPLIT.save(tmp_path / "train")
    data = laion_settings(write_shard(tmp_path / "0.tar", {str(i): sample(i) for i in range(9)}), held_out_share=1e-9)
    tiny = ShapesData(kind="shapes", train_images=5, test_images=1, reference_images=1)
    assert len(take(image_stream(tiny, tmp_path, 1, 0, rank=1, ranks=3), 1)[0][1]) == 1
    assert len(take(image_stream(data, surveyed(data, tmp_path), 2, 0), 1)[0][1]) == 2
