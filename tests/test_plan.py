"""The preflight: every kind of problem is listed with its remedy, all at once, and nothing else is called one."""

from __future__ import annotations

import json
import re
import shutil
import socket
import tarfile
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from splam import plan, sizes
from splam.params import CocoData, LaionData, Params, compose, resolve
from splam.plan import Cost, Line, Machine
from splam.probe import measure

SCHEDULER = {"_class_name": "PNDMScheduler", "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012}
SCHEDULER |= {"beta_schedule": "scaled_linear", "set_alpha_to_one": False, "skip_prk_steps": True}
GPU = Machine("a GPU", 8, 80 << 30)


def problems(lines: list[Line]) -> list[str]:
    return [line.text for line in lines if line.status == "problem"]


@pytest.fixture
def nothing(tmp_path, monkeypatch):
    """A machine with nothing on it and no network."""

    def refuse(*arguments):
        raise AssertionError("the plan used the network")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(plan.Machine, "here", classmethod(lambda cls: cls()))
    return tmp_path


def write_pipeline(folder: Path, **scheduler) -> Path:
    """The files of a Stable Diffusion pipeline as the plan reads them; the weights are one number."""
    parts = {"scheduler": "PNDMScheduler", "text_encoder": "CLIPTextModel", "tokenizer": "CLIPTokenizer"}
    parts |= {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
    known = sizes.Shapes.known("x/stable-diffusion-v1-5")
    configs = {"unet": known.unet | {"in_channels": 4, "out_channels": 4}, "vae": known.vae}
    configs |= {"text_encoder": known.text_encoders[0]}
    for part in parts:
        (folder / part).mkdir(parents=True)
    for part, config in configs.items():
        (folder / part / "config.json").write_text(json.dumps(config))
        name = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        save_file({"w": np.zeros(8, np.float32)}, folder / part / f"{name}.safetensors")
    (folder / "tokenizer" / "vocab.json").write_text("{}")
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER | scheduler))
    index = {"_class_name": "StableDiffusionPipeline", "safety_checker": [None, None]}
    index |= {part: ["diffusers", name] for part, name in parts.items()}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


# The teacher


def test_a_teacher_that_is_nowhere_names_its_download(nothing):
    lines, shapes = plan.teacher_lines("stable-diffusion-v1-5/stable-diffusion-v1-5")
    (text,) = problems(lines)
    assert "in the hub's local cache: download it" in text and lines[0].download.startswith("stable-diffusion-v1-5/")
    assert shapes.pixels == 512  # known without its files, so that disk and hours can be estimated


def test_a_whole_teacher_has_its_scheduler_read(tmp_path):
    folder = write_pipeline(tmp_path / "sd", prediction_type="v_prediction", beta_end=0.02)
    lines, shapes = plan.teacher_lines(str(folder))
    assert not problems(lines) and shapes.unet["cross_attention_dim"] == 768
    assert any("v_prediction-prediction, betas 0.00085 to 0.02, scaled_linear" in line.text for line in lines)


def test_all_that_a_teacher_lacks_is_listed_at_once(tmp_path):
    folder = write_pipeline(tmp_path / "sd")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(plan.POINTER + b"/spec/v1\n")
    cut = folder / "vae" / "diffusion_pytorch_model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-8])
    (folder / "text_encoder" / "model.safetensors").rename(folder / "text_encoder" / "model.fp16.safetensors")
    (folder / "tokenizer" / "vocab.json").unlink()
    (folder / "scheduler" / "scheduler_config.json").unlink()
    text = "\n".join(problems(plan.teacher_lines(str(folder))[0]))
    for part in (
        "unet: .* pointer of git-lfs",
        "vae: .* not whole",
        "only half-precision",
        "tokenizer: its vocab",
        "_config",
    ):
        assert re.search(part, text), part
    assert text.count("download it again, or correct teacher.source") == 5


def test_a_folder_that_is_no_pipeline(tmp_path):
    assert "no model_index.json" in problems(plan.teacher_lines(str(tmp_path))[0])[0]


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "flow-matching teacher"),
        ({"rescale_betas_zero_snr": True}, "zero terminal SNR"),
    ],
)
def test_an_unsupported_teacher_is_named(tmp_path, scheduler, message):
    (text,) = problems(plan.teacher_lines(str(write_pipeline(tmp_path / "sd", **scheduler)))[0])
    assert message in text and "name another teacher" in text


def test_the_tiny_teacher(tmp_path):
    assert not problems(plan.teacher_lines("tiny")[0])
    assert "make teacher" in problems(plan.teacher_lines("tiny", tmp_path)[0])[0]


def test_a_resolution_that_is_not_the_teachers():
    params = Params.model_validate(compose("sd15-w3", overrides=["data.resolution=256"]))
    (text,) = problems(plan.resolution_lines(params, sizes.Shapes.known(params.teacher.source)))
    assert "data.resolution is 256, the teacher's own size 512" in text


# The data


def laion(*shards: str, **settings) -> LaionData:
    options = {"held_out_share": 0.5, "test_images": 8} | settings
    return LaionData(kind="laion", shards=list(shards), resolution=64, coco=CocoData(folder="coco"), **options)


def test_good_shards_are_counted(laion_folder):
    lines, mean = plan.shard_lines(laion(f"{laion_folder}/{{00000..00002}}.tar"), needed=720)
    assert not problems(lines) and mean > 0
    (counted,) = [line.text for line in lines if "shards, about" in line.text]
    assert "of 12 looked at, 12 are an image with a caption" in counted
    estimate = float(counted.split("about ")[1].split(" samples")[0])
    assert estimate == pytest.approx(72, rel=0.3)


def test_counts_that_img2dataset_left_are_taken(laion_folder, tmp_path):
    shutil.copy(laion_folder / "00000.tar", tmp_path / "00000.tar")
    (tmp_path / "00000_stats.json").write_text('{"count": 30, "successes": 24}')
    assert plan.look(str(tmp_path / "00000.tar")).samples == 24


def test_every_bad_shard_is_listed_with_the_remedy(laion_folder, tmp_path):
    shutil.copy(laion_folder / "00000.tar", tmp_path / "good.tar")
    whole = (laion_folder / "00001.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2 // 512 * 512])
    (tmp_path / "page.tar").write_bytes(b"<html>not found</html>" * 100)
    with tarfile.open(tmp_path / "uncaptioned.tar", "w") as file, tarfile.open(laion_folder / "00000.tar") as source:
        for member in source:
            if member.name.endswith(".jpg"):
                file.addfile(member, source.extractfile(member))
    with tarfile.open(tmp_path / "hollow.tar", "w"):
        pass
    lines, _ = plan.shard_lines(laion(f"{tmp_path}/*.tar", f"{tmp_path}/gone-{{0..4}}.tar"), needed=100)
    text = "\n".join(problems(lines))
    for name, reason in {
        "cut": "stops before its end",
        "page": "no whole tar archive",
        "uncaptioned": "is an image with a caption",
        "hollow": "holds no samples",
        "gone-0": "there is no such file",
    }.items():
        assert re.search(f"{name}.tar.*{reason}", text), text
    assert "and 2 more" in text and "good.tar" not in text
    assert any(line.status == "ok" and line.text.startswith("1 shards") for line in lines)


def test_a_held_out_share_that_is_too_small(laion_folder):
    lines, _ = plan.shard_lines(laion(f"{laion_folder}/*.tar", held_out_share=0.01), needed=100)
    assert "raise data.held_out_share" in problems(lines)[0]


def test_urls_are_not_looked_at(nothing):
    lines, mean = plan.shard_lines(laion("https://example.org/{0..3}.tar"), needed=100)
    assert not problems(lines) and mean == 0 and "4 shards are URLs" in lines[0].text


def coco(folder: Path, **lists) -> list[Line]:
    return plan.coco_lines(CocoData(folder=str(folder), **lists), {"coco30k": 30, "coco5k": 20})


def test_coco_that_is_not_there_names_its_archives(tmp_path):
    lines = coco(tmp_path)
    assert len(problems(lines)) == 2 and all("unpack both there" in text for text in problems(lines))
    assert lines[0].download == "val2014.zip and annotations_trainval2014.zip, from cocodataset.org"


def test_whole_coco_says_whose_captions_are_drawn(coco_folder, tmp_path):
    content = json.loads((coco_folder / "annotations/captions_val2014.json").read_text())
    captions = [entry["caption"] for entry in content["annotations"]][::2]
    (tmp_path / "list.json").write_text(json.dumps(captions))
    assert [line.status for line in coco(coco_folder)] == ["note"] * 4  # another set than COCO's, and a draw
    lines = coco(coco_folder, captions_30k=str(tmp_path / "list.json"))
    assert lines[1].status == "ok" and "30 of the 40 captions of data.coco.captions_30k" in lines[1].text


def test_caption_lists_that_are_short_or_of_another_set(coco_folder, tmp_path):
    content = json.loads((coco_folder / "annotations/captions_val2014.json").read_text())
    (tmp_path / "short.json").write_text(json.dumps([content["annotations"][0]["caption"]]))
    (tmp_path / "other.txt").write_text("a caption of nothing\n")
    lists = {"captions_30k": str(tmp_path / "short.json"), "captions_5k": str(tmp_path / "other.txt")}
    short, other = problems(coco(coco_folder, **lists))
    assert "has 1 captions, 30 are drawn: give a longer list" in short and "of no image of val2017" in other


# The networks, the disk, the GPUs


def test_networks_that_are_missing_say_where_they_come_from(nothing):
    inception, clip = plan.network_lines("inception", "ViT-g-14/laion2b_s12b_b42k")
    assert inception.status == "problem" and "inception-2015-12-05.pt" in inception.download
    assert clip.status == "problem" and "laion/CLIP-ViT-g-14-laion2B-s12B-b42K" in clip.download
    assert "open_clip.list_pretrained()" in plan.clip_line("ViT-g-14/laion3b").text


def test_networks_that_are_there(nothing):
    weights = nothing / "torch/checkpoints/inception-2015-12-05.pt"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"1")
    cached = nothing / "hub/models--laion--CLIP-ViT-g-14-laion2B-s12B-b42K"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs/main").write_text("abc")
    (cached / "snapshots/abc").mkdir(parents=True)
    (cached / "snapshots/abc/open_clip_model.safetensors").write_bytes(b"1")
    lines = plan.network_lines("inception", "ViT-g-14/laion2b_s12b_b42k")
    assert [line.status for line in lines] == ["ok", "ok"]
    beside = plan.network_lines("inception", "ViT-g-14/laion2b_s12b_b42k", "ViT-L-14/openai")
    (text,) = problems(beside)
    assert "ViT-L-14/openai is not in the local cache: download it" in text and "ViT-L-14" in beside[-1].download
    assert "evaluation.clip_beside = 'x' is neither" in plan.network_lines("inception", "ViT-g-14/x", "x")[-1].text
    assert [line.status for line in plan.network_lines("efficientnet_lite0", "models/tiny/clip")] == ["ok", "ok"]
    assert "lacks open_clip_config.json" in plan.clip_line(str(nothing)).text


@pytest.fixture(scope="module")
def work() -> sizes.Work:
    return sizes.work_of(sizes.Shapes.known("stable-diffusion-v1-5/stable-diffusion-v1-5"))


@pytest.fixture(scope="module")
def params() -> Params:
    return Params.model_validate(compose("sd15-w3"))


def test_stable_diffusion_is_counted_right(work):
    assert work.unet_weights == 859_520_964 and work.vae_weights == 83_653_863 and work.text_weights == 123_060_480
    assert work.unet_flops == pytest.approx(0.803e12, rel=0.01) and work.encode_flops == pytest.approx(
        1.117e12, rel=0.01
    )
    assert 0.3e9 < work.activations < 3e9


def test_calls_of_one_sample_follow_algorithm_1(params):
    plain = params.training.model_copy(update={"gradient_checkpointing": False})
    lcm, splam = params.runs["lcm-w3-k20"], params.runs["splam-raw-w3-k100-me"]
    assert [sizes.calls_per_sample(run, plain, 20) for run in (lcm, splam)] == [6, 14]
    assert sizes.calls_per_sample(splam, plain.model_copy(update={"source": "cached"}), 20) == 4
    assert sizes.calls_per_sample(splam, plain.model_copy(update={"gammas_per_path": 4}), 20) == 10 + 1 + 4 * 3


def test_moments_in_8_bits_sharding_and_adapters_take_less_memory(params, work):
    def total(run, **changes):
        return sum(sizes.memory_per_process(work, run, params.training.model_copy(update=changes)).values())

    splam, lora = params.runs["splam-raw-w3-k100-me"], params.runs["lcm-lora-w3-k20"]
    full = total(splam)
    assert 25e9 < full < 80e9  # it must fit the 80 GB that the paper's GPUs have
    assert max(total(splam, optimizer="adamw_8bit"), total(splam, sharding="fsdp"), total(lora)) < full
    assert total(splam, gradient_checkpointing=False) > full


def test_a_disk_that_is_too_small(params, work, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 9, 1))
    assert "GB do not fit" in problems(plan.disk_lines(params, work, 5e4))[0]
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(1 << 50, 0, 1 << 50))
    assert not problems(plan.disk_lines(params, work, 5e4))


def test_the_trade_of_latents_is_told_where_they_are_not_used(params, work):
    (line,) = plan.latents_lines(params, work)
    assert "151.0 GB a million images" in line.text and "would save 16% to 28% of each training's work" in line.text
    assert sizes.disk_bytes(params, work)["latents"] == sizes.encoding_hours(params, work, sizes.A100) == 0


def test_latents_take_disk_and_hours_once_and_spare_the_trainings(params, work):
    settings = ["latents={images: 1000000, batch_size: 64}", "training.source=latents"]
    kept = Params.model_validate(compose("sd15-w3", overrides=settings))
    assert sizes.disk_bytes(kept, work)["latents"] == 1_000_000 * 151_040
    (line,) = plan.latents_lines(kept, work)
    assert "1,000,000 images, 151,040 bytes each, 151.0 GB; 7 GPU-hours" in line.text
    resolved = [resolve(one, "splam-raw-w3-k20-s0") for one in (params, kept)]
    online, stored = (sizes.seconds_per_sample(work, r.run, r.training, 20, sizes.A100) for r in resolved)
    assert online - stored == pytest.approx(work.encode_flops / sizes.A100.vae)


def work_lines(params: Params, work: sizes.Work, machine: Machine, cost: Cost | None = None) -> list[Line]:
    measure = plan.estimated(params, work) if cost is None else lambda shapes, resolved: cost
    return plan.work_lines(params, sizes.Shapes.known(params.teacher.source), work, machine, measure)


def test_hours_without_a_gpu_are_an_estimate_that_says_so(params, work):
    lines = work_lines(params, work, Machine())
    assert "nothing was measured" in lines[0].text and "A100 at 30%" in lines[0].text
    (text,) = problems(lines)
    assert "no GPU here" in text and "CUDA" in text


def test_measured_costs_become_hours(params, work):
    lines = work_lines(params, work, GPU, Cost(0.5, 50 << 30, True))
    assert "measured with random weights" in lines[0].text and not problems(lines)
    assert any("splam-raw-w3-k100-me-s0: 50 GiB a process, 6,000 x 960 samples, 800 GPU-hours" in x.text for x in lines)


def test_gpus_that_are_too_few_or_too_small(params, work):
    lines = work_lines(params, work, Machine("a GPU", 3, 80 << 30))
    assert "--set training.processes=3 training.accumulation=27" in problems(lines)[0]
    several = work_lines(params, work, Machine("a GPU", 4, 80 << 30))
    assert not problems(several) and any("2 machines like this one" in line.text for line in several)
    small = problems(work_lines(params, work, Machine("a GPU", 8, 12 << 30)))
    assert "more memory than one GPU has: --set training.gradient_checkpointing=true" in small[0]
    full = problems(work_lines(params, work, GPU, Cost(float("nan"), float("inf"), True)))
    assert "more memory than one GPU has" in full[0]


# The whole


def test_on_a_machine_with_nothing_everything_is_listed_at_once(nothing, capsys):
    assert plan.main(["sd15-w3"]) == 1
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "teacher stable-diffusion-v1-5",
        "data.shards:",
        "val2014",
        "val2017",
        "Inception",
        "ViT-g-14",
        "ViT-L-14",
        "no GPU",
    ):
        assert re.search(f"✗[^✗]*{part}", text), part
    assert "To download" in text and "Not ready: " in text


def test_a_profile_that_needs_nothing_is_ready(nothing, capsys):
    assert plan.main(["tiny"]) == 0
    assert "Ready: " in capsys.readouterr().out


def test_a_wrong_profile_or_override_is_an_error(capsys):
    assert plan.main(["sd15-w3", "--set", "training.optimiser=sgd"]) == 1
    assert "did you mean 'optimizer'" in capsys.readouterr().err


def test_the_probe_trains_and_counts(teacher_folder):
    params = Params.model_validate(compose("tiny", overrides=["training.batch_size=2"]))
    found = measure(
        sizes.Shapes.of_folder(teacher_folder), resolve(params, "splam-w3-k20-s0"), params.trajectories, "cpu"
    )
    assert found.seconds_per_sample > 0 and found.peak_bytes == 0
