"""What leaves the package is opened by stock diffusers, with no code of ours, and draws what we measure."""

import json

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler, UNet2DConditionModel
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from splam.measure.draw import student_draw
from splam.method.sampling import draw_noise, generators
from splam.networks.export import export_pipeline, load_authors_unet, published_unet, save_lora, write_card
from splam.networks.student import make_student
from splam.networks.teacher import assemble_teacher, load_teacher
from tests.networks.conftest import changed, shaken, stock_pipeline
from tests.runs import small_run

PROMPTS = ["red apple on a yellow background", "snowman on a red background"]


@pytest.mark.parametrize(
    ("of", "method"),
    [("teacher", method) for method in ("lcm", "lcm_star", "lcm_star lora", "splam")] + [("sd_teacher", "splam lora")],
)
def test_stock_diffusers_draws_the_same_images(request, tmp_path, of, method):
    teacher, run = request.getfixturevalue(of), small_run(method)
    student = published_unet(shaken(make_student(teacher.unet, run)), run)
    export_pipeline(student, teacher.folder, tmp_path)
    stock = stock_pipeline(tmp_path)
    assert isinstance(stock.scheduler, LCMScheduler) and stock.safety_checker is None
    how = {"guidance_scale": run.guidance_scale if run.method == "lcm_star" else 1.0, "output_type": "np"}
    for steps in (1, 4):
        ours = student_draw(teacher, student, run)(PROMPTS, [7, 8], steps).astype(int)
        theirs = stock(PROMPTS, num_inference_steps=steps, generator=generators([7, 8]), **how).images
        assert np.abs(ours - np.rint(theirs * 255)).max() <= 1 and ours.std() > 1


CONFIG = "scheduler/scheduler_config.json"
SAMPLING = {"thresholding": True, "clip_sample": True, "timestep_spacing": "trailing", "set_alpha_to_one": True}
SAMPLING |= {"timestep_scaling": 3.0, "original_inference_steps": 100, "rescale_betas_zero_snr": True}


def test_a_student_has_its_teachers_noise_schedule_and_nothing_of_how_it_is_sampled(teacher, tmp_path):
    written = {}
    for name, values in {"plain": {}, "sampled": SAMPLING, "noisier": {"beta_start": 0.001}}.items():
        copy = changed(teacher.folder, tmp_path / name, CONFIG, **values)
        export_pipeline(teacher.unet, copy, tmp_path / f"{name}-out")
        written[name] = json.loads((tmp_path / f"{name}-out" / CONFIG).read_text())
    assert written["sampled"] == written["plain"] != written["noisier"]
    assert written["noisier"] == written["plain"] | {"beta_start": 0.001}
    assert written["plain"]["prediction_type"] == "v_prediction"


def test_what_is_written_names_no_folder_of_this_machine(teacher, tmp_path):
    """Else no two clones would have equal files."""
    assemble_teacher(str(teacher.folder), tmp_path / "again")
    export_pipeline(load_teacher(tmp_path / "again").unet, tmp_path / "again", tmp_path / "out")
    for folder in (teacher.folder, tmp_path / "again", tmp_path / "out"):
        names = [json.loads(path.read_text()).get("_name_or_path") for path in folder.rglob("*.json")]
        assert not any(names)


@pytest.mark.parametrize("method", ["lcm lora", "splam lora"])
def test_a_lora_file_makes_the_teacher_the_merged_student(sd_teacher, tmp_path, method):
    run = small_run(method)
    student = shaken(make_student(sd_teacher.unet, run))
    save_lora(student, tmp_path)
    adapter = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    assert len(adapter) == sum("lora_" in name for name, _ in student.named_parameters())
    stock = stock_pipeline(sd_teacher.folder)
    stock.load_lora_weights(tmp_path)
    z, t = draw_noise(generators([7, 8]), sd_teacher.latent_shape), torch.tensor([19, 999])
    captions = sd_teacher.embed(PROMPTS)
    with torch.no_grad():
        merged = sd_teacher.call(published_unet(student, run), z, t, captions)
        torch.testing.assert_close(sd_teacher.call(stock.unet, z, t, captions), merged, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(sd_teacher.call(sd_teacher.unet, z, t, captions), merged, rtol=1e-2, atol=1e-2)


def test_the_authors_unet_is_folded_exactly(teacher, generator, tmp_path):
    """At gamma = 1 they feed the constant e(1) = [0 ... 0, 1 ... 1]; the folded network needs none."""
    torch.manual_seed(3)
    released = UNet2DConditionModel.from_config(teacher.unet.config, time_cond_proj_dim=8).eval()
    released.save_pretrained(tmp_path)
    folded = load_authors_unet(tmp_path)
    assert folded.state_dict().keys() == teacher.unet.state_dict().keys()
    z, t, captions = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([19, 999]), teacher.embed(PROMPTS)
    constant = torch.tensor([0.0] * 4 + [1.0] * 4).expand(2, -1)
    with torch.no_grad():
        expected = teacher.call(released, z, t, captions, constant)
        torch.testing.assert_close(teacher.call(folded, z, t, captions), expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(teacher.call(released, z, t, captions), expected, atol=1e-4)
    with pytest.raises(ValueError, match="it is no released SPLAM UNet"):
        load_authors_unet(teacher.folder / "unet")


def test_a_card_holds_the_facts(tmp_path):
    write_card(tmp_path, small_run(), "some/teacher", "shapes", "CreativeML Open RAIL-M")
    text = ModelCard.load(tmp_path / "README.md").text
    for part in ("`some/teacher`", "40, multiple estimation", "guidance_scale=1,", "RAIL-M", "evaluate/run.csv"):
        assert part in text
    assert "| iterations, global batch | 4, 4 |" in text
    write_card(tmp_path, small_run("lcm_star"), "tiny", "shapes")
    text = (tmp_path / "README.md").read_text()
    assert "guidance_scale=3," in text and "Not stated" in text
