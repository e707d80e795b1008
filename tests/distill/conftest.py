"""A cache of trajectories of the small teacher."""

import numpy as np
import pytest

from splam.data import shapes
from splam.distill.paths import TrajectoryCache
from splam.distill.trajectories import build_cache, make_draws
from tests.distill.builders import profile


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """What the data stage leaves of the tiny world, with 40 images of noise to train on."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    images = rng.integers(256, size=(40, 32, 32, 3), dtype=np.uint8)
    parts = np.array([[number % len(words) for words in shapes.PARTS] for number in range(40)])
    np.save(folder / "train.npy", np.rec.fromarrays([images, parts], shapes.RECORD))
    return folder


@pytest.fixture(scope="session")
def cache(teacher, data) -> TrajectoryCache:
    """24 draws at w = 3, with five solver steps each."""
    params = profile()
    return build_cache(params, teacher, make_draws(params, data, teacher.schedule.length), 3.0)
