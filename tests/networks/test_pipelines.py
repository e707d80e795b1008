"""Any pipeline is opened as it is, with the scheduler and the adapter that are asked for."""

import numpy as np
import pytest
import torch
from diffusers.utils import convert_state_dict_to_diffusers
from safetensors.torch import load_file, save_file

from splam.networks.export import save_lora
from splam.networks.pipelines import draw_images, open_any
from splam.networks.student import make_student
from tests.networks.conftest import shaken
from tests.runs import small_run


@pytest.fixture(scope="module")
def lora(teacher, tmp_path_factory):
    """The folder of a trained adapter."""
    folder = tmp_path_factory.mktemp("lora")
    save_lora(shaken(make_student(teacher.unet, small_run("lcm lora"))), folder)
    return folder


def test_it_draws_what_the_stock_pipeline_draws(sd_folder):
    pipeline = open_any(str(sd_folder), "DDIMScheduler")
    assert type(pipeline.scheduler).__name__ == "DDIMScheduler" and pipeline.scheduler.config.beta_start == 0.00085
    images = draw_images(pipeline, ["a dog", "a cat"], [3, 4], 2, 5.0)
    made = pipeline("a cat", num_inference_steps=2, guidance_scale=5.0, generator=torch.Generator().manual_seed(4))
    assert np.abs(np.asarray(made.images[0]).astype(int) - images[1]).max() <= 1


def test_an_adapter_changes_the_images(teacher_folder, lora):
    plain, adapted = open_any(teacher_folder), open_any(teacher_folder, lora=str(lora))
    assert (draw_images(plain, ["a dog"], [0], 1, 1.0) != draw_images(adapted, ["a dog"], [0], 1, 1.0)).any()


FILE = "pytorch_lora_weights.safetensors"
UNFIT = {
    "attn9.to_k": lambda weights: {key.replace("attn1", "attn9"): weight for key, weight in weights.items()},
    "attn1.to_k": convert_state_dict_to_diffusers,
    " down_blocks": lambda weights: {key.removeprefix("unet."): weight for key, weight in weights.items()},
    " unet": lambda weights: {key: 0 * weight if "lora_B" in key else weight for key, weight in weights.items()},
    "unet": lambda weights: {key: 0 * weight if "lora_A" in key else weight for key, weight in weights.items()},
}


@pytest.mark.parametrize(("key", "change"), UNFIT.items())
def test_an_adapter_that_does_not_fit_is_refused(teacher_folder, lora, tmp_path, key, change):
    """diffusers drops such keys with a warning at most."""
    save_file(change(load_file(lora / FILE)), tmp_path / FILE)
    with pytest.raises(ValueError, match=f"weights change nothing, such as.*{key}"):
        open_any(teacher_folder, lora=str(tmp_path))


def test_an_adapter_of_another_model_is_named(teacher_folder, lora, tmp_path):
    half = {key: weight for key, weight in load_file(lora / FILE).items() if "lora_A" in key}
    save_file(half, tmp_path / FILE)
    with pytest.raises(ValueError, match=f"{tmp_path} is no adapter of this pipeline: "):
        open_any(teacher_folder, lora=str(tmp_path))


@pytest.mark.parametrize(("network", "value"), [("unet", torch.nan), ("vae", torch.inf)])
def test_a_network_that_diverged_draws_no_black_or_white_image(teacher_folder, network, value):
    """diffusers clamps an autoencoder's infinities to white and black."""
    pipeline = open_any(teacher_folder, "LCMScheduler")
    part = pipeline.unet if network == "unet" else pipeline.vae.decoder
    torch.nn.init.constant_(part.conv_out.bias, value)
    with pytest.raises(ValueError, match="an image is not finite"):
        draw_images(pipeline, ["a dog"], [0], 1, 1.0)


def test_a_pipeline_in_half_precision_decodes_in_float32(teacher_folder, monkeypatch):
    pipeline, seen = open_any(teacher_folder, "LCMScheduler", dtype=torch.bfloat16), []
    pipeline.vae.decoder.register_forward_hook(lambda module, given, made: seen.append(made.dtype))
    draw_images(pipeline, ["a dog"], [0], 1, 1.0)
    pipeline("a dog", num_inference_steps=1)  # as its users call it, whose latency is measured
    assert seen == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("lora", ["/no/such", "no/such/adapter.safetensors", "nothing"])
def test_an_adapter_that_is_nowhere_is_named(teacher_folder, lora):
    with pytest.raises(FileNotFoundError, match=f"lora: {lora} is neither a file, nor a folder, nor a hub id"):
        open_any(teacher_folder, lora=lora)


def test_an_unknown_scheduler_is_named(teacher_folder):
    with pytest.raises(ValueError, match="no scheduler 'Euler': name one of its classes, such as LCMScheduler"):
        open_any(teacher_folder, "Euler")
