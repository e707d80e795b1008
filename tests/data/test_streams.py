"""Where randomness comes from, and the tiny world's images as a stream."""

import itertools

import numpy as np
import torch

from splam.data import shapes
from splam.data.streams import Stream, batch_rows, epoch_order, iteration_generator
from tests.data.conftest import same, take

IMAGES = np.repeat(np.arange(5, dtype=np.uint8), 32 * 32 * 3).reshape(5, 32, 32, 3)
PARTS = np.array([[n, n % 4, n, n + 1] for n in range(5)])
SPLIT = np.rec.fromarrays([IMAGES, PARTS], shapes.RECORD).view(shapes.Split)


def test_an_iterations_randomness_depends_on_seed_and_iteration_alone():
    draws = {(s, i): float(torch.rand((), generator=iteration_generator(s, i))) for s in (0, 1) for i in (-1, 0, 1)}
    assert len(set(draws.values())) == 6
    assert draws[1, 0] == float(torch.rand((), generator=iteration_generator(1, 0)))


def test_rows_use_the_pool_up_before_they_repeat_across_batches():
    rows = torch.cat([batch_rows(i, 4, 10, seed=3) for i in range(5)]).tolist()
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10)) and rows[:10] != rows[10:]


def test_each_comes_once_and_then_again_in_an_order_by_seed_that_can_be_entered_anywhere():
    stream = Stream(SPLIT, 2, seed=0)
    line = take(stream, 5)
    assert same(take(stream, 2, start=3), line[3:]) and not same(take(Stream(SPLIT, 2, seed=1), 5), line)
    shown = torch.cat([pixels for pixels, _ in line])
    assert shown.shape == (10, 3, 32, 32) and len(shown[:5].unique(dim=0)) == len(shown[5:].unique(dim=0)) == 5
    levels = {caption for _, captions in itertools.chain(line, take(stream, 30)) for caption in captions}
    assert len(levels) > 5  # more than one for an image


def test_ranks_share_the_batches_of_one_and_permute_an_epoch_once(monkeypatch):
    whole, orders, permute = take(Stream(SPLIT, 4, seed=0), 5), [], torch.randperm  # 20 samples, 4 epochs
    monkeypatch.setattr(torch, "randperm", lambda *args, **more: orders.append(args) or permute(*args, **more))
    epoch_order.cache_clear()
    ranks = [Stream(SPLIT, 1, seed=0).batches(rank, 4) for rank in range(4)]
    for batch in whole:
        shares = [next(rank) for rank in ranks]
        assert same([(torch.cat([p for p, _ in shares]), [c for _, (c,) in shares])], [batch])
    assert len(orders) == 4
