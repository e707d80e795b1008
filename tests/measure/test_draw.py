"""Every way of drawing against diffusers' own pipelines, and images that do not depend on their batch."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from splam.data.images import resize
from splam.measure.draw import baseline_draw, baseline_scheduler, in_batches, student_draw
from splam.method.sampling import draw_noise, generators
from splam.method.schedule import Schedule
from splam.networks.pipelines import draw_images
from splam.networks.teacher import TINY_MODELS
from tests.runs import small_run

CAPTIONS, SEEDS = ["a red dog", "a cat on a blue background", ""], [3, 4, 5]
TINY = DDIMScheduler.from_pretrained(TINY_MODELS / "scheduler")


def apart(a, b) -> int:
    """The largest difference of two sets of images."""
    return np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max()


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_a_baseline_is_the_stock_pipeline(teacher, guidance_scale):
    stock = StableDiffusionPipeline.from_pretrained(teacher.folder, safety_checker=None)
    stock.scheduler = baseline_scheduler("ddim", teacher.scheduler_config)
    theirs = draw_images(stock, CAPTIONS, SEEDS, 3, guidance_scale)
    assert apart(baseline_draw(teacher, "ddim", guidance_scale)(CAPTIONS, SEEDS, 3), theirs) <= 1


def test_no_guidance_asks_the_network_for_captions_alone(teacher, monkeypatch):
    seen, forward = [], teacher.unet.forward

    def counted(z, *given, **named):
        seen.append(len(z))
        return forward(z, *given, **named)

    monkeypatch.setattr(teacher.unet, "forward", counted)
    for w in (1.0, 3.0):
        baseline_draw(teacher, "ddim", w)(CAPTIONS, SEEDS, 1)
    assert seen == [3, 6]


def test_the_undistilled_network_is_drawn_from_as_a_student(teacher):
    as_student = student_draw(teacher, teacher.unet, small_run("lcm"))(CAPTIONS, SEEDS, 2)
    assert (baseline_draw(teacher, "consistency", 1.0)(CAPTIONS, SEEDS, 2) == as_student).all()


def test_with_guidance_the_undistilled_network_guesses_from_the_guided_noise(teacher):
    t = torch.full((len(SEEDS),), 999)
    z, schedule = draw_noise(generators(SEEDS), teacher.latent_shape), teacher.schedule
    with torch.no_grad():
        x0 = (z - schedule.sigma(t) * teacher.guided(teacher.embed(CAPTIONS), 8.0)(z, t)) / schedule.alpha(t)
    assert apart(baseline_draw(teacher, "consistency", 8.0)(CAPTIONS, SEEDS, 1), teacher.decode(x0)) <= 1


def test_images_do_not_depend_on_their_batch(teacher, params):
    student = student_draw(teacher, teacher.unet, small_run("lcm"))
    whole = in_batches(student, CAPTIONS, 2, params)
    cut = params.model_copy(update={"evaluation": params.evaluation.model_copy(update={"batch_size": 2})})
    assert whole.dtype == np.uint8 and apart(in_batches(student, CAPTIONS, 2, cut), whole) <= 1
    seeds = [1_000_000, 1_000_001, 1_000_002]  # of seed 0
    assert apart(student(CAPTIONS, seeds, 2), whole) == 0
    assert (in_batches(student, CAPTIONS, 2, params, 24) == resize(whole, 24)).all()


@pytest.mark.parametrize("name", ["ddim", "dpmsolver", "dpmsolver++", "unipc"])
def test_every_scheduler_finds_a_single_point(name):
    """With exact noise of one-point data, any solver ends at the point, whatever its number of steps."""
    schedule = Schedule.from_alphas_cumprod(TINY.alphas_cumprod)

    def exact(z, t):
        return (z - schedule.alpha(t) * 0.5) / schedule.sigma(t)

    for steps in (1, 4):
        scheduler = baseline_scheduler(name, dict(TINY.config) | {"prediction_type": "epsilon"})
        scheduler.set_timesteps(steps)
        assert int(scheduler.timesteps[0]) == 999  # full noise at the start
        z = draw_noise(generators([0]), (1, 4, 4))
        for t in scheduler.timesteps:
            z = scheduler.step(exact(z, t.view(1)), t, z).prev_sample
        assert (z - 0.5).abs().max() < 0.15, (name, steps)


def test_a_scheduler_keeps_the_teachers_betas_and_ends_at_alpha_0():
    config = dict(TINY.config) | {"beta_start": 0.001}
    scheduler = baseline_scheduler("ddim", config)
    assert isinstance(scheduler, DDIMScheduler) and not scheduler.config.set_alpha_to_one
    assert scheduler.config.beta_start == 0.001 and scheduler.config.prediction_type == "v_prediction"
