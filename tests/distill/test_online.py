"""Online sub-paths: cut as one likes, resumed anywhere, and latent consistency distillation by an independent hand."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler

from splam.distill.loop import Distillation
from splam.distill.paths import Batch
from tests.distill.builders import online
from tests.runs import SETTINGS, FakeStream, small_run


def assert_same(parts: list[Batch], whole: Batch) -> None:
    for name in ("captions", "gamma", "guidance_scale"):
        joined = torch.cat([getattr(part, name) for part in parts])
        torch.testing.assert_close(joined, getattr(whole, name), rtol=1e-4, atol=1e-5, msg=name)
    for name, value in vars(whole.path).items():
        joined = torch.cat([getattr(part.path, name) for part in parts])
        torch.testing.assert_close(joined, value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(("processes", "micro_batches"), [(2, 1), (1, 2), (2, 2)])
def test_a_batch_is_the_same_however_it_is_cut(teacher, processes, micro_batches):
    size, shares = 4 // (processes * micro_batches), processes * micro_batches
    training = {"batch_size": size, "gradient_accumulation_steps": micro_batches}
    parts = [
        online(teacher, FakeStream(size), training=training).batch(3, share, shares)
        for share in range(shares)  # the trainer's numbering: micro-batch x processes + rank
    ]
    assert_same(parts, online(teacher).batch(3, 0, 1))


def test_it_resumes_where_it_was_and_is_entered_once(teacher):
    stream, fresh = FakeStream(2), FakeStream(2)
    training = {"batch_size": 2, "gradient_accumulation_steps": 2}
    source = online(teacher, stream, training=training)
    batches = {(i, s): source.batch(i, s, 2) for i in range(3) for s in range(2)}
    again = online(teacher, fresh, training=training).batch(2, 0, 2)
    assert stream.entered == [0] and fresh.entered == [4]
    assert torch.equal(again.path.z_s, batches[2, 0].path.z_s)


def test_methods_share_their_draws(teacher):
    lcm, splam, star = (online(teacher, method=m, skip=20).batch(0, 0, 1) for m in ("lcm", "splam", "lcm_star"))
    assert torch.equal(lcm.path.z_s, online(teacher, method="lcm lora", skip=20).batch(0, 0, 1).path.z_s)
    assert torch.equal(lcm.captions, star.captions) and (star.gamma == 1).all() and (splam.gamma < 1).all()
    assert len(star.guidance_scale.unique()) == 4 and (lcm.guidance_scale == 3).all()


def test_some_captions_are_dropped(teacher):
    source = online(teacher, settings=SETTINGS.model_copy(update={"empty_captions": 0.5}))
    dropped = [torch.equal(c, teacher.empty[0]) for i in range(6) for c in source.batch(i, 0, 1).captions]
    assert 4 < sum(dropped) < 20


def test_paths_have_the_solvers_steps_and_ends(teacher):
    """k = 40 by two steps of 20, or one step of 40 without multiple estimation; all end at max(t - k, 0)."""
    several, one = (online(teacher, multiple_estimation=several).batch(0, 0, 1).path for several in (True, False))
    assert torch.equal(several.s, (several.t - 40).clamp(min=0)) and torch.equal(one.s, several.s)
    assert torch.equal(one.z_t, several.z_t) and not torch.allclose(one.z_s, several.z_s, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="skip k = 50 is not a multiple of solver_skip k_phi = 20"):
        online(teacher, skip=50).batch(0, 0, 1)


def test_latents_computed_once_are_as_those_of_their_images(teacher):
    """A path starts at alpha(t) z + sigma(t) noise; z that is encoded in training has the autoencoder's noise too."""
    pixels, captions = next(FakeStream(12).batches())
    mean, embeddings = teacher.encode(pixels), teacher.embed(captions)
    std = teacher.vae.encode(pixels).latent_dist.std * teacher.vae.config.scaling_factor

    def batches(start, stride):
        for number in range(start, 3):
            yield mean[4 * number : 4 * number + 4], embeddings[4 * number : 4 * number + 4]

    stored, fresh = online(teacher, SimpleNamespace(batches=batches)).batch(1, 0, 1), online(teacher).batch(1, 0, 1)
    assert torch.equal(stored.path.t, fresh.path.t)
    torch.testing.assert_close(stored.captions, fresh.captions, rtol=1e-4, atol=1e-5)
    alpha, sigma = teacher.schedule.alpha(fresh.path.t), teacher.schedule.sigma(fresh.path.t)
    for path, level in ((stored.path, sigma), (fresh.path, (sigma**2 + (alpha * std[4:8]) ** 2).sqrt())):
        assert ((path.z_t - alpha * mean[4:8]) / level).std() == pytest.approx(1, abs=0.1)


def test_images_of_another_size_are_refused(teacher):
    error = r"latents are \(4, 16, 16\), the teacher's \(4, 8, 8\): set data.resolution"
    with pytest.raises(ValueError, match=error):
        online(teacher, FakeStream(4, pixels=64)).batch(0, 0, 1)


def independent_loss(teacher, batch: Batch, w: float) -> torch.Tensor:
    """LCD (Luo et al., 2023, Alg. 1) with diffusers' DDIM as solver and LCMScheduler as consistency function."""
    keys = ("beta_start", "beta_end", "beta_schedule", "prediction_type")
    kept = {key: teacher.scheduler_config[key] for key in keys}
    solver = DDIMScheduler(**kept, clip_sample=False, set_alpha_to_one=False)
    solver.num_inference_steps = 50
    consistency = LCMScheduler(**kept, clip_sample=False, set_alpha_to_one=False)
    empty = teacher.embed([""])

    def unet(z, time, caption):
        return teacher.unet(z, torch.tensor([time]), encoder_hidden_states=caption).sample

    def denoised(z, time, caption):
        consistency.set_timesteps(timesteps=[time], original_inference_steps=50)
        return consistency.step(unet(z, time, caption), time, z).denoised

    losses = []
    rows = zip(batch.path.z_t.split(1), batch.path.t.tolist(), batch.captions.split(1), strict=True)
    for z, time, caption in rows:
        solved, now = z, time
        for _ in range(2):  # k = 40 in DDIM's own steps of 1000 / 50
            uncertain, certain = unet(solved, now, empty), unet(solved, now, caption)
            solved = solver.step(uncertain + w * (certain - uncertain), now, solved).prev_sample
            now -= 20
        losses.append((denoised(z, time, caption) - denoised(solved, now, caption)).square().mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_gamma_one_is_latent_consistency_distillation(teacher, prediction_type):
    """Guidance, two DDIM steps and the loss, for epsilon and v, against a straightforward reading."""
    teacher = replace(teacher, scheduler_config=teacher.scheduler_config | {"prediction_type": prediction_type})
    source = online(teacher, method="lcm", training={"loss": "l2"})
    source.starts = source.starts[source.starts > 60]  # LCMScheduler knows no consistency function at time 0
    job = Distillation(small_run("lcm", training={"loss": "l2"}), teacher, source)
    with torch.no_grad():
        ours, theirs = job.loss(0, 0, 1), independent_loss(teacher, source.batch(0, 0, 1), 3.0)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=0)
