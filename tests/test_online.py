"""Online sub-paths: cut as one likes, resumed anywhere, and latent consistency distillation by an independent hand."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from runs import SETTINGS, FakeStream, small_run
from standins import save_sd

from splam.batches import Batch
from splam.data import emoji
from splam.models import load_teacher
from splam.online import EmojiStream, LatentStream, OnlinePaths
from splam.train import train_step


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def either(request, tmp_path_factory):
    """A teacher of Stable Diffusion 1's kind, and one of 2's."""
    return load_teacher(save_sd(tmp_path_factory.mktemp("sd"), request.param))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return load_teacher(save_sd(tmp_path_factory.mktemp("sd")))


def online(teacher, stream=None, settings=SETTINGS, **options) -> OnlinePaths:
    resolved = small_run(**options)
    return OnlinePaths(stream or FakeStream(resolved.training.batch_size), resolved, teacher, settings)


def assert_same(batch: Batch, other: Batch) -> None:
    for one, two in ((batch.paths, other.paths), (batch, other)):
        for name, value in vars(one).items():
            if isinstance(value, torch.Tensor) and name != "caption":
                torch.testing.assert_close(value, getattr(two, name), rtol=1e-4, atol=1e-5, msg=name)


def joined(parts: list[Batch]) -> Batch:
    paths = {name: torch.cat([getattr(p.paths, name) for p in parts]) for name in vars(parts[0].paths)}
    more = {name: torch.cat([getattr(p, name) for p in parts]) for name in ("captions", "gamma")}
    return Batch(type(parts[0].paths)(**paths), **more, guidance_scale=None)


@pytest.mark.parametrize(("processes", "accumulation"), [(2, 1), (1, 2), (2, 2)])
def test_a_batch_is_the_same_however_it_is_cut(teacher, processes, accumulation):
    size = 4 // (processes * accumulation)
    shares = processes * accumulation
    parts = []
    for share in range(shares):  # the trainer's numbering: micro-batch x processes + rank
        source = online(teacher, FakeStream(size * processes), batch_size=size, accumulation=accumulation)
        parts.append(source.batch(3, share, shares))
    assert_same(joined(parts), online(teacher).batch(3, 0, 1))


def test_a_stream_may_give_each_process_its_own_share(teacher):
    """Rank 1's stream of batches of 2 takes the place of the second half of batches of 4."""
    whole = online(teacher, FakeStream(4), batch_size=2).batch(0, 1, 2)
    own = FakeStream(2)
    own.batches = lambda start=0: FakeStream(2).batches(start + 1)
    assert_same(online(teacher, own, batch_size=2).batch(0, 1, 2), whole)


def test_it_resumes_where_it_was_and_is_entered_once(teacher):
    stream, fresh = FakeStream(2), FakeStream(2)
    source = online(teacher, stream, batch_size=2, accumulation=2)
    batches = {(i, s): source.batch(i, s, 2) for i in range(3) for s in range(2)}
    again = online(teacher, fresh, batch_size=2, accumulation=2).batch(2, 0, 2)
    assert stream.entered == [0] and fresh.entered == [4]
    assert torch.equal(again.paths.z_s, batches[2, 0].paths.z_s)


def test_an_iteration_is_drawn_anew(teacher):
    source = online(teacher)
    first, second = source.batch(0, 0, 1), source.batch(1, 0, 1)
    assert not torch.equal(first.gamma, second.gamma) and not torch.equal(first.paths.z_t, second.paths.z_t)


def test_some_captions_are_dropped(teacher):
    source = online(teacher, settings=SETTINGS.model_copy(update={"empty_captions": 0.5}))
    empty = teacher.embed([""])[0]
    dropped = [torch.equal(c, empty) for i in range(6) for c in source.batch(i, 0, 1).captions]
    assert 4 < sum(dropped) < 20


def test_paths_have_the_solvers_steps_and_ends(teacher):
    """k = 40 by two steps of 20, or one step of 40 without multiple estimation; all end at max(t - k, 0)."""
    several = online(teacher).batch(0, 0, 1).paths
    assert torch.equal(several.s, (several.t - 40).clamp(min=0))
    one = online(teacher, settings=SETTINGS.model_copy(update={"solver_skip": 40})).batch(0, 0, 1).paths
    assert torch.equal(one.z_t, several.z_t)
    assert not torch.allclose(one.z_s, several.z_s, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="skip k = 50 is not a multiple of solver_skip k_phi = 20"):
        online(teacher, skip=50)


def test_lcm_star_has_its_own_w_for_each_sample(teacher):
    batch = online(teacher, method="lcm_star", skip=20).batch(0, 0, 1)
    assert len(batch.guidance_scale.unique()) == 4 and (batch.gamma == 1).all()
    assert batch.guidance_scale.min() >= 2 and batch.guidance_scale.max() <= 14


def test_latents_are_the_mean_or_a_sample(teacher):
    mean, sample, other = (
        online(teacher, latents=kind, seed=seed).batch(0, 0, 1).paths.z_t
        for kind, seed in (("mean", 5), ("sample", 5), ("mean", 6))
    )
    assert not torch.allclose(mean, sample) and not torch.allclose(mean, other)


class Store:
    """Mean latents and embeddings of a fake stream's first 12 images."""

    def __init__(self, teacher):
        pixels, captions = next(FakeStream(12).batches())
        self.latents, self.embeddings = teacher.encode(pixels), teacher.embed(captions)

    def __len__(self):
        return len(self.latents)

    def rows(self, rows):
        return self.latents[rows], self.embeddings[rows]


def test_latents_computed_once_give_the_paths_of_their_images(teacher):
    store = Store(teacher)

    class InOrder(LatentStream):
        def batches(self, start=0):
            for number in range(start, 3):
                yield self.store.rows(list(range(4 * number, 4 * number + 4)))

    stored = online(teacher, InOrder(store, 4, 0)).batch(1, 0, 1)
    assert_same(stored, online(teacher, latents="mean").batch(1, 0, 1))
    shuffled = LatentStream(store, 4, 0)
    batches = [latents for (latents, _), _ in zip(shuffled.batches(), range(3), strict=False)]
    assert len(torch.cat(batches).flatten(1).unique(dim=0)) == 12
    assert torch.equal(next(shuffled.batches(2))[0], batches[2])


def test_the_tiny_worlds_images_are_a_stream():
    split = emoji.Split(np.arange(5 * 32 * 32 * 3).reshape(5, 32, 32, 3).astype(np.uint8), np.arange(5), np.arange(5))
    stream = EmojiStream(split, 2, seed=0)
    line = [batch for batch, _ in zip(stream.batches(), range(4), strict=False)]
    pixels, captions = next(stream.batches(3))
    assert torch.equal(pixels, line[3][0]) and captions == line[3][1]
    assert pixels.shape == (2, 3, 32, 32) and pixels.min() >= -1 and pixels.max() <= 1


@pytest.mark.parametrize(
    ("stream", "error"),
    [
        (FakeStream(3), "the stream gave 3 samples: training.batch_size = 4 of each of 2 processes are 4 or 8"),
        (FakeStream(4, pixels=64), r"latents are \(4, 16, 16\), the teacher's \(4, 8, 8\): set data.resolution"),
        (FakeStream(4, last=0), "the stream ended before batch 0: it must be endless"),
    ],
)
def test_streams_that_do_not_fit_are_named(teacher, stream, error):
    with pytest.raises((ValueError, RuntimeError), match=error):
        online(teacher, stream).batch(0, 0, 2)


def independent_loss(teacher, source: OnlinePaths, z_t, times, captions, w: float) -> torch.Tensor:
    """LCD (Luo et al., 2023, Alg. 1) with diffusers' DDIM as solver and LCMScheduler as consistency function."""
    config = teacher.scheduler_config
    keys = ("beta_start", "beta_end", "beta_schedule", "prediction_type")
    kept = {key: config[key] for key in keys}
    solver = DDIMScheduler(**kept, clip_sample=False, set_alpha_to_one=False)
    solver.num_inference_steps = 50
    consistency = LCMScheduler(**kept, clip_sample=False, set_alpha_to_one=False)
    empty = teacher.embed([""])

    def unet(z, time, caption):
        return teacher.unet(z, torch.tensor([time]), encoder_hidden_states=caption).sample

    def denoised(z, time, caption):
        consistency.set_timesteps(timesteps=[max(time, 1)], original_inference_steps=50)
        return consistency.step(unet(z, time, caption), max(time, 1), z).denoised

    losses = []
    with torch.no_grad():
        for z, time, caption in zip(z_t.split(1), times.tolist(), captions.split(1), strict=True):
            solved, now = z, time
            for _ in range(2):  # k = 40 in DDIM's own steps of 1000 / 50
                uncertain, certain = unet(solved, now, empty), unet(solved, now, caption)
                solved = solver.step(uncertain + w * (certain - uncertain), now, solved).prev_sample
                now -= 20
            losses.append((denoised(z, time, caption) - denoised(solved, now, caption)).square().mean())
    return torch.stack(losses).mean()


def test_gamma_one_is_latent_consistency_distillation(either):
    """Guidance, two DDIM steps and the loss, for epsilon and v, against a straightforward reading."""
    resolved = small_run("lcm", loss="l2", short_ends="strict")
    source = OnlinePaths(FakeStream(4), resolved, either, SETTINGS)
    source.starts = source.starts[source.starts > 60]  # LCMScheduler knows no consistency function at time 0
    batch = source.batch(0, 0, 1)
    ours = train_step(either.unet, either.unet, batch, either, resolved)
    theirs = independent_loss(either, source, batch.paths.z_t, batch.paths.t, batch.captions, 3.0)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=0)
