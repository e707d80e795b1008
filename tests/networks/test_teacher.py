"""Teachers: what is read from a pipeline, what is refused, and that its networks are called as diffusers calls them."""

import dataclasses
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from splam.method.schedule import to_epsilon
from splam.networks.teacher import check_teacher, embed_captions, load_teacher
from tests.networks.conftest import changed, stock_pipeline

PROMPTS = ["a red cat", "two dogs on a blue background"]
T = torch.tensor([999, 499])


def test_a_teacher_is_read_not_assumed(teacher, sd_teacher):
    assert (teacher.prediction_type, sd_teacher.prediction_type) == ("v_prediction", "epsilon")
    for each in (teacher, sd_teacher):
        assert each.schedule.length == 1000 and float(each.schedule.alphas[-1]) == pytest.approx(0.0682, abs=1e-3)
        assert each.encode(torch.zeros(1, 3, each.image_size, each.image_size)).shape[1:] == each.latent_shape
        weights = [p for part in (each.unet, each.vae, each.text_encoder) for p in part.parameters()]
        assert not any(p.requires_grad or p.dtype != torch.float32 for p in weights)


def test_embeddings_are_the_stock_pipelines(any_teacher):
    expected, empty = stock_pipeline(any_teacher.folder).encode_prompt(PROMPTS, "cpu", 1, True)
    torch.testing.assert_close(any_teacher.embed(PROMPTS), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(any_teacher.empty.expand_as(empty), empty, rtol=1e-5, atol=1e-6)


def test_an_attention_mask_goes_where_the_text_encoder_asks_for_one(sd_teacher):
    stock = stock_pipeline(sd_teacher.folder)
    stock.text_encoder.config.use_attention_mask = True
    expected, _ = stock.encode_prompt(PROMPTS, "cpu", 1, False)
    ours = embed_captions(stock.tokenizer, stock.text_encoder, PROMPTS, batch_size=1)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(ours, sd_teacher.embed(PROMPTS))


def test_guided_outputs_are_the_stock_pipelines(any_teacher, monkeypatch):
    """Both halves of classifier-free guidance, against the stock pipeline's own call of its UNet."""
    stock, seen = stock_pipeline(any_teacher.folder), []
    forward = stock.unet.forward

    def record(z, time, **arguments):
        seen.append((z, time, forward(z, time, **arguments)[0]))
        return seen[-1][2:]

    monkeypatch.setattr(stock.unet, "forward", record)
    stock(PROMPTS, num_inference_steps=2, guidance_scale=5.0, generator=torch.Generator().manual_seed(0))
    z, time, expected = seen[0]
    unconditional, conditional = expected.chunk(2)
    z, t, schedule = z[:2], torch.full((2,), int(time)), any_teacher.schedule
    ours = any_teacher.epsilons(z, t, any_teacher.embed(PROMPTS))
    level = schedule.alpha(t), schedule.sigma(t), any_teacher.prediction_type
    theirs = tuple(to_epsilon(output, z, *level) for output in (conditional, unconditional))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_half_precision_is_for_the_unets_calls_alone_and_not_for_what_comes_out(teacher, generator):
    """An output rounded to bfloat16 would be an error of 0.024 RMS in x_0 at t = 999; images are those of float32."""
    half = dataclasses.replace(teacher, bf16=True)
    z, captions = torch.randn(2, *teacher.latent_shape, generator=generator), teacher.embed(PROMPTS)
    with torch.no_grad():
        expected, ours = (each.call(each.unet, z, T, captions) for each in (teacher, half))
    assert ours.dtype == torch.float32 and 0 < (ours - expected).abs().max() < 0.1
    assert not torch.equal(ours, ours.bfloat16().float())
    assert torch.equal(half.embed(PROMPTS), captions) and torch.equal(half.decode(z), teacher.decode(z))


SCHEDULER = "scheduler/scheduler_config.json"


@pytest.mark.parametrize(
    ("file", "values", "error"),
    [
        (SCHEDULER, {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "flow matching"),
        (SCHEDULER, {"prediction_type": "flow_prediction"}, "flow matching"),
        (SCHEDULER, {"prediction_type": "score"}, "prediction_type 'score' is not supported"),
        (SCHEDULER, {"rescale_betas_zero_snr": True}, "zero terminal SNR"),
        ("model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, "a StableDiffusionXLPipeline is not"),
        ("model_index.json", {"scheduler": ["diffusers", "EDMEulerScheduler"]}, "EDMEulerScheduler has no alphas"),
        (SCHEDULER, {"num_train_timesteps": 990}, "50 grid steps do not divide the schedule's 990 times"),
        (SCHEDULER, {"beta_schedule": "sigmoid"}, "its noise schedule .* is none that LCMScheduler has"),
        ("model_index.json", {"image_encoder": ["transformers", "CLIPVisionModel"]}, "has no image_encoder, which its"),
        ("unet/config.json", {"in_channels": 9}, "inpainting"),
        ("unet/config.json", {"time_cond_proj_dim": 256}, "distilled already"),
        ("unet/config.json", {"sample_size": [8, 12]}, "a UNet whose sample_size is not one number"),
    ],
)
def test_what_cannot_be_distilled_is_refused(sd_folder, tmp_path, file, values, error):
    copy = changed(sd_folder, tmp_path / "copy", file, **values)
    if "sigmoid" in values.values():
        copy = changed(copy, tmp_path / "second", "model_index.json", scheduler=["diffusers", "DDPMScheduler"])
    with pytest.raises((ValueError, FileNotFoundError), match=error):
        load_teacher(copy)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_network_with_weights_missing_is_refused(sd_folder, tmp_path, part):
    """The libraries put random ones in their place, with a warning."""
    (file,) = shutil.copytree(sd_folder, tmp_path / "copy").joinpath(part).glob("*.safetensors")
    weights = load_file(file)
    del weights[name := max(weights)]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ValueError, match=f"the {part}'s file lacks 1 weights, such as .*{name.split('.')[-1]}"):
        load_teacher(tmp_path / "copy")


@pytest.mark.parametrize("file", ["text_encoder/model.safetensors", "tokenizer/tokenizer.json"])
def test_a_damaged_file_that_its_library_does_not_name_is_the_teachers(sd_folder, tmp_path, file):
    path = shutil.copytree(sd_folder, tmp_path / "copy") / file
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="copy cannot be read, look at its text encoder and tokenizer: "):
        load_teacher(tmp_path / "copy")


def test_an_index_that_names_no_pipeline_is_named(tmp_path):
    for content in ("[]", "{}"):
        (tmp_path / "model_index.json").write_text(content)
        with pytest.raises(ValueError, match="model_index.json names no _class_name"):
            check_teacher(tmp_path)


@pytest.mark.parametrize("source", ["no/such/folder", "nowhere", "./a/b"])
def test_a_source_that_is_nowhere_is_named(source):
    with pytest.raises(FileNotFoundError, match=f"{source} is neither a pipeline's folder .* nor a hub id"):
        check_teacher(source)
