"""Students: equal to the teacher at step 0, and opened by stock diffusers once exported."""

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler, StableDiffusionPipeline

from splam import models
from splam.evaluate import draw_student
from splam.params import ResolvedRun, Run, Training

TRAINING = Training(
    iterations=1,
    batch_size=1,
    learning_rate=1e-3,
    warmup=0,
    weight_decay=0.0,
    gradient_norm=1.0,
    ema_decay=0.9,
    loss="huber",
    bf16=False,
    checkpoint_seconds=60,
    condition_width=16,
    lora_rank=4,
)
METHODS = ("lcm", "lcm_star", "lcm_lora", "splam")


def run_of(method: str) -> Run:
    return Run(method=method, guidance_scale=3, skip=20, multiple_estimation=False)


@pytest.fixture
def inputs(generator):
    """z, t, gamma, captions and w of three samples."""
    z = torch.randn(3, 4, 8, 8, generator=generator)
    captions = torch.randn(3, 8, 384, generator=generator)
    return z, torch.tensor([19, 499, 999]), torch.tensor([0.0, 0.4, 1.0]), captions, torch.tensor([2.0, 8.0, 14.0])


def output(teacher, unet, inputs, method):
    z, t, gamma, captions, w = inputs
    return models.student_network(unet, captions, run_of(method), TRAINING, w, teacher.autocast)(z, t, gamma)


def shaken(student: torch.nn.Module) -> torch.nn.Module:
    """The student after some training: every trainable weight moved."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    return student.eval()


@pytest.mark.parametrize("method", METHODS)
def test_a_student_starts_as_its_teacher(teacher, inputs, method):
    z, t, gamma, captions, _ = inputs
    student = models.make_student(teacher.unet, run_of(method), TRAINING).eval()
    with torch.no_grad():
        expected = teacher.network(teacher.unet, captions)(z, t, gamma)
        torch.testing.assert_close(output(teacher, student, inputs, method), expected, rtol=1e-4, atol=1e-5)
    trainable = sum(p.requires_grad for p in student.parameters())
    assert 0 < trainable and (method == "lcm_lora") == (trainable < len(list(student.parameters())))
    assert not any(p.requires_grad for p in teacher.unet.parameters())


def test_gamma_reaches_a_trained_student_and_vanishes_at_one(teacher, inputs):
    """cond_proj is dropped on export, and the network at gamma = 1 is unchanged (after Eq. 19)."""
    student = shaken(models.make_student(teacher.unet, run_of("splam"), TRAINING))
    z, t, _, captions, _ = inputs
    published = models.published_unet(student, run_of("splam"))
    assert not [name for name, _ in published.named_parameters() if "cond_proj" in name]
    with torch.no_grad():
        plain = teacher.network(published, captions)(z, t, torch.ones(3))
        for gamma, same in ((torch.ones(3), True), (torch.full((3,), 0.3), False)):
            fed = output(teacher, student, (z, t, gamma, captions, None), "splam")
            assert torch.allclose(fed, plain, rtol=1e-4, atol=1e-5) == same


def test_a_lora_student_is_merged_on_export(teacher, inputs):
    student = shaken(models.make_student(teacher.unet, run_of("lcm_lora"), TRAINING))
    published = models.published_unet(student, run_of("lcm_lora"))
    assert {n for n, _ in published.named_parameters()} == {n for n, _ in teacher.unet.named_parameters()}
    z, t, gamma, captions, _ = inputs
    with torch.no_grad():
        expected = output(teacher, student, inputs, "lcm_lora")
        torch.testing.assert_close(teacher.network(published, captions)(z, t, gamma), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("steps", [1, 4])
def test_stock_diffusers_draws_the_same_image(teacher, tmp_path, method, steps):
    """The exported folder, opened with no code of ours, gives our sampler's pixels to rounding."""
    from test_train import resolved_run, small_params

    published = models.published_unet(
        shaken(models.make_student(teacher.unet, run_of(method), TRAINING)), run_of(method)
    )
    models.export_pipeline(published, teacher.folder, tmp_path / "student")
    prompts = ["red apple on a yellow background", "snowman on a red background"]
    params = small_params()
    resolved: ResolvedRun = resolved_run(method)
    ours = draw_student(teacher, published, teacher.embed(prompts), resolved, steps, params, "")

    stock = StableDiffusionPipeline.from_pretrained(tmp_path / "student")
    stock.set_progress_bar_config(disable=True)
    assert isinstance(stock.scheduler, LCMScheduler)
    seeds = [torch.Generator().manual_seed(1_000_000 + i) for i in range(2)]
    w = resolved.run.guidance_scale if method == "lcm_star" else 1.0
    theirs = stock(prompts, num_inference_steps=steps, guidance_scale=w, generator=seeds, output_type="np").images
    difference = np.abs(ours.astype(int) - np.rint(theirs * 255).astype(int))
    assert difference.max() <= 1
    assert ours.std() > 1


def test_the_teacher_is_read_not_assumed(teacher):
    assert teacher.prediction_type == "v_prediction"
    assert teacher.latent_shape == (4, 8, 8)
    assert float(teacher.schedule.alphas[-1]) == pytest.approx(0.0682, abs=1e-3)


def test_embeddings_are_the_stock_pipelines(teacher):
    stock = StableDiffusionPipeline.from_pretrained(teacher.folder)
    prompt = "dog face on a blue background"
    expected, empty = stock.encode_prompt(prompt, "cpu", 1, True)
    torch.testing.assert_close(teacher.embed([prompt]), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(teacher.embed([""]), empty, rtol=1e-5, atol=1e-6)


def test_missing_models_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="make teacher"):
        models.assemble_tiny(tmp_path / "out", 8, tmp_path)
    with pytest.raises(FileNotFoundError, match="no diffusers pipeline"):
        models.load_teacher(tmp_path)
