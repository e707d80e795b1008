"""Any pipeline is opened as it is, with the scheduler and the adapter that are asked for."""

import numpy as np
import pytest
import torch
from standins import save_sd

from splam.models import add_lora, save_lora
from splam.pipelines import draw_images, open_any


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_sd(tmp_path_factory.mktemp("sd"))


def test_it_draws_what_the_stock_pipeline_draws(folder):
    pipeline = open_any(str(folder), "DDIMScheduler")
    assert type(pipeline.scheduler).__name__ == "DDIMScheduler" and pipeline.scheduler.config.beta_start == 0.00085
    images = draw_images(pipeline, ["a dog", "a cat"], [3, 4], 2, 5.0)
    assert images.shape == (2, 32, 32, 3) and images.dtype == np.uint8
    made = pipeline("a cat", num_inference_steps=2, guidance_scale=5.0, generator=torch.Generator().manual_seed(4))
    assert np.abs(np.asarray(made.images[0]).astype(int) - images[1]).max() <= 1


def test_an_adapter_changes_the_images(folder, tmp_path):
    pipeline = open_any(str(folder))
    plain = draw_images(pipeline, ["a dog"], [0], 1, 1.0)
    add_lora(pipeline.unet, 2)
    for name, parameter in pipeline.unet.named_parameters():
        if "lora" in name:
            torch.nn.init.constant_(parameter, 0.3)
    save_lora(pipeline.unet, tmp_path)
    assert not (draw_images(open_any(str(folder), lora=str(tmp_path)), ["a dog"], [0], 1, 1.0) == plain).all()


def test_what_is_not_there_is_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a pipeline's folder .* nor a hub id"):
        open_any(str(tmp_path))
    with pytest.raises(ValueError, match="no scheduler 'Euler': name a class of its, such as LCMScheduler"):
        open_any(str(folder), "Euler")
