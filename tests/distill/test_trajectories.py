"""The stages that a training reads: the trajectory cache, and latents that are what a training would have encoded."""

import json
import sqlite3

import pytest
import torch

from splam.data import shapes
from splam.data.images import DataError
from splam.data.latents import LatentStore
from splam.data.streams import Stream, training_images
from splam.distill.loop import open_distillation
from splam.distill.trajectories import build_cache, encode_latents, make_draws
from splam.measure.draw import OTHER_NOISE, first_seed
from splam.method.sampling import draw_noise, generators
from tests.data.conftest import laion_settings, surveyed
from tests.distill.builders import RUN, profile
from tests.runs import contents

LATENTS = "latents.train={images: 10, batch_size: 4}"


def test_draws_are_the_same_for_every_w_and_other_for_another_seed(cache, teacher, data):
    params = profile()
    draws = make_draws(params, data, teacher.schedule.length)
    other = build_cache(params, teacher, draws, 8.0)
    assert torch.equal(other.chain[:, 0], cache.chain[:, 0]) and torch.equal(other.conditional, cache.conditional)
    assert not torch.equal(other.chain[:, 1], cache.chain[:, 1])
    _, captions, t = make_draws(profile("seed=1"), data, teacher.schedule.length)
    assert captions != draws[1] and not torch.equal(t, draws[2])
    assert 0 < draws[1].count("") < 12
    with pytest.raises(ValueError, match="trajectories.draws is 41, the training split has 40 images"):
        make_draws(profile("trajectories.draws=41"), data, 1000)


def test_the_cache_keeps_captions_and_images_together(cache, teacher, data):
    assert cache.chain.shape == (24, 6, 4, 8, 8) and cache.embeddings.dtype == torch.float16
    images, captions, t = make_draws(profile(), data, teacher.schedule.length)
    embedded = teacher.embed(captions)
    torch.testing.assert_close(cache.embeddings[cache.caption].float(), embedded, rtol=1e-2, atol=1e-3)
    epsilon = teacher.epsilons(cache.chain[:, 0], t, embedded)
    torch.testing.assert_close(cache.conditional, epsilon[0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(cache.unconditional, epsilon[1], rtol=1e-3, atol=1e-4)
    assert len({tuple(image.flatten()) for image in images}) == 24


def test_seeds_share_no_picture_and_no_noise(teacher, data):
    """Of training, of the pool of trajectories and of the evaluation: else an interval over seeds is too narrow."""
    scenes, noises = set(), []
    for seed in range(6):
        scenes |= {repr(shapes.scene(split, seed, index)) for split in shapes.SPLITS for index in range(200)}
        params = profile(f"seed={seed}")
        draws = make_draws(profile(), data, teacher.schedule.length)[:2]  # the same, but for time 999: noise alone
        draws = (*draws, torch.full((24,), 999))
        noises.append(build_cache(params, teacher, draws, 3.0).chain[:, 0])
        for images in (1_000, OTHER_NOISE):  # the evaluation's first noises, and the last that a second draw leaves
            seeds = [first_seed(params, second) + images - i for second in (False, True) for i in range(1, 5)]
            noises.append(draw_noise(generators(seeds), (4, 8, 8)))
    assert len(scenes) == 6 * 3 * 200
    flat = torch.nn.functional.normalize(torch.cat(noises).flatten(1), dim=1)
    alike = (flat @ flat.T).fill_diagonal_(0)
    assert alike.max() < 0.5, "two noises that are independent are nearly at right angles in 256 dimensions"


@pytest.fixture
def shards(laion_folder, tmp_path):
    """A profile of shards with a latents stage, and what the data stage notes of them."""
    data = surveyed(laion_settings(f"{laion_folder}/*.tar", held_out_share=0.35), tmp_path)
    settings = [f"data.shards=['{laion_folder}/*.tar']", "data.resolution=32", "data.max_broken_share=1", LATENTS]
    return lambda *more: profile("training.source=latents", *settings, *more, name="rehearsal"), data


def test_they_are_of_a_trainings_images_drawn_once_and_a_stopped_stage_goes_on(shards, teacher, tmp_path):
    made, data = shards
    params = made("latents.train.dtype=float32")
    encode_latents(params, teacher, data, tmp_path / "out")
    whole, kept = contents(tmp_path / "out"), LatentStore(tmp_path / "out")
    assert len(kept) == 12  # 10 images are three whole batches of 4
    batches = Stream(training_images(params.data, data), 4, 0).batches()
    for number, (pixels, captions) in zip(range(3), batches, strict=False):
        latents, embeddings = kept.__getitems__([(row, "") for row in range(4 * number, 4 * number + 4)])
        std = teacher.vae.encode(pixels).latent_dist.std * teacher.vae.config.scaling_factor
        assert ((latents - teacher.encode(pixels)) / std).std() == pytest.approx(1, abs=0.1)
        torch.testing.assert_close(embeddings, teacher.embed(captions))
    for number in (1, 2):  # as if it had been stopped in the second batch
        (tmp_path / f"out/{number:08d}.safetensors").unlink()
    encode_latents(params, teacher, data, tmp_path / "out")
    assert contents(tmp_path / "out") == whole


def test_latents_of_other_data_are_replaced_and_of_other_test_sets_are_not(shards, teacher, tmp_path):
    made, data = shards
    encode_latents(made(), teacher, data, tmp_path / "out")
    plan = LatentStore(tmp_path / "out").plan
    encode_latents(made("data.coco.folder=elsewhere", "data.workers=3"), teacher, data, tmp_path / "out")
    assert LatentStore(tmp_path / "out").plan == plan
    with sqlite3.connect(data / "samples.db") as notes:
        notes.execute("UPDATE training SET caption = 'another' WHERE rowid = 1")
    encode_latents(made(), teacher, data, tmp_path / "out")
    assert LatentStore(tmp_path / "out").plan != plan


def test_a_training_reads_them_and_knows_others(shards, teacher, teacher_folder, tmp_path):
    made, data = shards
    params, folder = made(), tmp_path / "scratch/latents"
    (tmp_path / "teacher").symlink_to(teacher_folder)

    def encode(params):
        encode_latents(params, teacher, data, folder)
        (tmp_path / "latents").mkdir(exist_ok=True)
        (tmp_path / "latents/summary.json").write_text(json.dumps({"plan": LatentStore(folder).plan}))

    with pytest.raises(FileNotFoundError, match=r"run the latents stage \(dvc repro latents\) first"):
        open_distillation(params, RUN, tmp_path, data)
    encode(params)
    job = open_distillation(params, RUN, tmp_path, data)
    assert job.source.batch(0, 0, 2).path.z_t.shape == (4, 4, 8, 8)
    encode(made("latents.train.dtype=float32"))
    other = open_distillation(params, RUN, tmp_path, data)
    assert {key for key, value in job.parameters.items() if other.parameters[key] != value} == {"latents"}
    encode_latents(params, teacher, data, folder)  # as for another profile, whose summary went back to DVC's cache
    with pytest.raises(DataError, match="holds other latents than the stage's: run it"):
        open_distillation(params, RUN, tmp_path, data)
