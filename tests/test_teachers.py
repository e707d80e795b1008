"""Teachers and students of Stable Diffusion's own classes: what is read, refused, and opened by stock diffusers."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from runs import SETTINGS, FakeStream, small_run
from safetensors.torch import save_file
from standins import save_sd, save_sdxl, unet

from splam import models, train
from splam.cards import CardFacts, card_text
from splam.loss import published_function
from splam.online import OnlinePaths
from splam.sampling import generators, sample_consistency
from splam.solver import ddim_step
from splam.trajectories import epsilons

SOURCES = {"sd1": save_sd, "sd2": lambda folder: save_sd(folder, "v_prediction"), "sdxl": save_sdxl}
STOCK = {"sd1": StableDiffusionPipeline, "sd2": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}
PROMPTS = ["a cat", "two dogs"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: save(tmp_path_factory.mktemp(name)) for name, save in SOURCES.items()}


@pytest.fixture(scope="module")
def teachers(folders):
    return {name: models.load_teacher(folder) for name, folder in folders.items()}


@pytest.mark.parametrize("name", SOURCES)
def test_a_teacher_says_what_its_scheduler_says(teachers, name):
    teacher = teachers[name]
    assert teacher.prediction_type == {"sd1": "epsilon", "sd2": "v_prediction", "sdxl": "epsilon"}[name]
    assert teacher.schedule.length == 1000 and float(teacher.schedule.alphas[-1]) == pytest.approx(0.0682, abs=1e-3)
    parts = (teacher.unet, teacher.vae, teacher.text_encoder)
    assert not any(p.requires_grad or p.dtype != torch.float32 for part in parts for p in part.parameters())


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_embeddings_are_the_stock_pipelines(teachers, folders, name):
    stock = STOCK[name].from_pretrained(folders[name])
    expected, empty, *pooled = stock.encode_prompt(
        PROMPTS, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True
    )
    embeddings, nothing = teachers[name].embed(PROMPTS), teachers[name].embed([""])
    if name == "sdxl":
        tokens, added = teachers[name].added.unpack(embeddings)
        torch.testing.assert_close(added["added_cond_kwargs"]["text_embeds"], pooled[0])
        assert added["added_cond_kwargs"]["time_ids"].tolist() == [[32, 32, 0, 0, 32, 32]] * 2
        assert not nothing.any() and not empty.any()
        return torch.testing.assert_close(tokens, expected)
    torch.testing.assert_close(embeddings, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(nothing.expand_as(empty), empty, rtol=1e-5, atol=1e-6)


def test_an_attention_mask_goes_where_the_text_encoder_asks_for_one(teachers, folders):
    stock = StableDiffusionPipeline.from_pretrained(folders["sd1"])
    stock.text_encoder.config.use_attention_mask = True
    expected, _ = stock.encode_prompt(PROMPTS, "cpu", 1, False)
    ours = models.embed_captions(stock.tokenizer, stock.text_encoder, PROMPTS)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(ours, teachers["sd1"].embed(PROMPTS))


@pytest.mark.parametrize("name", SOURCES)
def test_one_guided_step_is_the_stock_pipelines(teachers, folders, name):
    """A trajectory's first noise predictions against the stock pipeline's own call of its UNet, SDXL's extras too."""
    teacher, seen = teachers[name], {}
    stock = STOCK[name].from_pretrained(folders[name])
    stock.set_progress_bar_config(disable=True)

    class Seen(Exception):
        pass

    def record(z, time, **arguments):
        with torch.no_grad():
            seen["z"], seen["t"] = z.chunk(2)[0], time
            seen["output"] = type(stock.unet).forward(stock.unet, z, time, **arguments)[0]
        raise Seen

    stock.unet.forward = record
    with pytest.raises(Seen):
        stock(PROMPTS, num_inference_steps=2, guidance_scale=5.0, generator=torch.Generator().manual_seed(0))
    t = torch.full((2,), int(seen["t"]))
    captions, empty = teacher.embed(PROMPTS), teacher.embed([""])
    conditional, unconditional = models.guided_outputs(teacher, seen["z"], t, captions, empty)
    expected = seen["output"].chunk(2)
    torch.testing.assert_close(unconditional, expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(conditional, expected[1], rtol=1e-4, atol=1e-5)


def test_a_v_teachers_ddim_step_turns_z_and_v(teachers, generator):
    """z_s = alpha_s (alpha z - sigma v) + sigma_s (sigma z + alpha v): a rotation, by Salimans & Ho (2022)."""
    teacher = teachers["sd2"]
    z, t, s = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([999, 499]), torch.tensor([979, 479])
    captions = teacher.embed(PROMPTS)
    v, _ = models.guided_outputs(teacher, z, t, captions, captions)
    (alpha, sigma), schedule = (f(t) for f in (teacher.schedule.alpha, teacher.schedule.sigma)), teacher.schedule
    expected = schedule.alpha(s) * (alpha * z - sigma * v) + schedule.sigma(s) * (sigma * z + alpha * v)
    epsilon, _ = epsilons(teacher, z, t, captions, captions)
    torch.testing.assert_close(ddim_step(z, epsilon, t, s, schedule), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SOURCES)
def test_a_student_trains_and_stock_diffusers_draws_its_images(teachers, tmp_path, name):
    """From images to an exported folder with a card, at one and at four steps, for every kind of teacher."""
    teacher, resolved = teachers[name], small_run(iterations=2, latents="mean")
    source = OnlinePaths(FakeStream(4), resolved, teacher, SETTINGS)
    losses = train.train(resolved, teacher, source, tmp_path / "scratch", tmp_path / "out", facts())
    assert len(losses) == 2 and np.isfinite(losses).all()
    assert "Nothing has been measured" in (tmp_path / "out/pipeline/README.md").read_text()
    stock = STOCK[name].from_pretrained(tmp_path / "out/pipeline")
    stock.set_progress_bar_config(disable=True)
    assert isinstance(stock.scheduler, LCMScheduler)
    objective = dataclasses.replace(models.objective_of(teacher, resolved.run, resolved.training))
    for steps in (1, 4):
        network = teacher.network(stock.unet.eval(), teacher.embed(PROMPTS))
        with torch.no_grad():
            consistency = published_function(network, objective)
            latents = sample_consistency(consistency, generators([7, 8]), teacher.latent_shape, steps, teacher.schedule)
        ours = teacher.decode(latents).numpy()
        options = {"num_inference_steps": steps, "guidance_scale": 1.0, "output_type": "np"}
        theirs = stock(PROMPTS, generator=generators([7, 8]), **options).images
        assert np.abs(ours.astype(int) - np.rint(theirs * 255).astype(int)).max() <= 1


def test_a_lora_file_is_opened_by_the_stock_pipeline(teachers, folders, tmp_path):
    """The teacher with the adapter loaded is the merged student."""
    teacher, resolved = teachers["sd1"], small_run("lcm_lora", iterations=2, lora_learning_rate=1e-2)
    source = OnlinePaths(FakeStream(4), resolved, teacher, SETTINGS)
    train.train(resolved, teacher, source, tmp_path / "scratch", tmp_path / "out")
    stock = StableDiffusionPipeline.from_pretrained(folders["sd1"])
    stock.load_lora_weights(tmp_path / "out/lora")
    adapted = [name for name, _ in stock.unet.named_parameters() if "lora_A" in name]
    trained = [
        name for name, p in models.make_student(teacher.unet, resolved.run, resolved.training).named_parameters()
    ]
    assert len(adapted) == sum("lora_A" in name for name in trained)
    z, t, captions = torch.ones(2, 4, 8, 8), torch.tensor([19, 999]), teacher.embed(PROMPTS)
    merged = StableDiffusionPipeline.from_pretrained(tmp_path / "out/pipeline").unet
    with torch.no_grad():
        outputs = [teacher.network(u, captions)(z, t, torch.ones(2)) for u in (stock.unet, merged, teacher.unet)]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(outputs[1], outputs[2], rtol=1e-3, atol=1e-4)


def changed(folder, copy, file: str, **values):
    """A copy of a pipeline's configurations, without weights, with one changed."""
    for path in folder.rglob("*.json"):
        target = copy / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(path.read_text())
    (copy / file).write_text(json.dumps(json.loads((copy / file).read_text()) | values))
    return copy


@pytest.mark.parametrize(
    ("file", "values", "error"),
    [
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "FlowMatchEulerDiscreteScheduler"},
            "flow-matching teacher",
        ),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow_prediction"}, "flow-matching teacher"),
        ("model_index.json", {"_class_name": "FluxPipeline"}, "a FluxPipeline is not supported: supported are"),
        ("scheduler/scheduler_config.json", {"prediction_type": "score"}, "prediction_type is 'score'"),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "zero terminal SNR"),
        ("unet/config.json", {"in_channels": 9}, r"maps 9 to 4 channels \(inpainting"),
        ("unet/config.json", {"time_cond_proj_dim": 256}, "distilled already"),
    ],
)
def test_what_cannot_be_distilled_is_refused_before_weights_are_read(folders, tmp_path, file, values, error):
    with pytest.raises(ValueError, match=error):
        models.load_teacher(changed(folders["sd1"], tmp_path, file, **values))


def test_a_flow_scheduler_has_no_schedule_either():
    with pytest.raises(ValueError, match="has no alphas_cumprod"):
        models.Schedule.from_scheduler(FlowMatchEulerDiscreteScheduler())


@pytest.mark.parametrize("source", ["no/such/folder", "nowhere", "./a/b"])
def test_a_source_that_is_nowhere_is_named(source):
    with pytest.raises(FileNotFoundError, match=f"{source} is no diffusers pipeline"):
        models.check_teacher(source)


def test_a_teacher_of_any_kind_is_put_together(folders, tmp_path):
    models.assemble_teacher(str(folders["sdxl"]), tmp_path / "teacher", tokens=8)
    assert models.load_teacher(tmp_path / "teacher").added is not None


@pytest.mark.parametrize("as_file", [False, True])
def test_the_authors_unet_is_folded_exactly(generator, tmp_path, as_file):
    """At gamma = 1 they feed the constant e(1) = [0 ... 0, 1 ... 1]; the folded network needs none."""
    torch.manual_seed(3)
    released = unet(16, time_cond_proj_dim=8).eval()
    path = tmp_path / "unet"
    if as_file:
        path = tmp_path / "released.safetensors"
        save_file(released.state_dict(), path)
    else:
        released.save_pretrained(path)
    folded = models.load_authors_unet(path, like=unet(16))
    assert "time_embedding.cond_proj.weight" not in folded.state_dict()
    z, t, captions = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([19, 999]), torch.ones(2, 10, 16)
    constant = torch.tensor([0.0] * 4 + [1.0] * 4).expand(2, -1)
    with torch.no_grad():
        expected = models.call_unet(released, z, t, captions, constant)
        torch.testing.assert_close(models.call_unet(folded, z, t, captions, None), expected, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(models.call_unet(released, z, t, captions, None), expected, atol=1e-4)


def test_an_authors_unet_that_is_none_is_named(tmp_path):
    unet(16).save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="no released SPLAM UNet"):
        models.load_authors_unet(tmp_path / "plain")
    with pytest.raises(FileNotFoundError, match="give the released UNet's folder or file"):
        models.load_authors_unet(tmp_path)


def facts(**more) -> CardFacts:
    values = {"name": "run-s0", "method": "splam", "teacher": "some/teacher", "data": "images", "guidance_scale": 3.0}
    values |= {"skip": 100, "multiple_estimation": True, "training": {"iterations": 2}}
    return CardFacts(**{**values, **more})


def test_a_card_holds_the_facts_it_is_given_and_no_others():
    text = card_text(facts(licence="CreativeML Open RAIL-M", steps=[2, 4]))
    for part in (
        "`some/teacher`",
        "guidance scale w | 3",
        "100, multiple estimation",
        "RAIL-M",
        "num_inference_steps=4",
    ):
        assert part in text
    assert "guidance_scale=1," in text and "Nothing has been measured" in text
    star = card_text(facts(method="lcm_star"))
    assert "guidance_scale=3," in star and "Not stated" in star
    row = {"steps": 4, "FID": 10.1, "images": 30000, "protocol": "coco30k"}
    assert "| 4 | 10.1 | 30000 | coco30k |" in card_text(facts(numbers=[row]))
    with pytest.raises(ValueError, match="a measured row lacks images, protocol"):
        card_text(facts(numbers=[{"FID": 10.1}]))
