"""The preflight: every kind of problem is listed with its remedy, all at once, and nothing else is called one."""

import hashlib
import re
import shutil
import socket
import tarfile
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

from splam import preflight
from splam.config import CocoData, PictureData, parse
from splam.data.coco import read_coco
from splam.preflight import NOTE, OK, PROBLEM, Line
from splam.profile import compose
from tests.standins.sd import write_pipeline


def problems(lines: list[Line]) -> list[str]:
    return [text for mark, text in lines if mark == PROBLEM]


@pytest.fixture
def nothing(tmp_path, monkeypatch):
    """A machine with nothing on it and no network; the hub is offline, as the command has it, and asks nobody twice."""

    def refuse(*arguments):
        raise AssertionError("the network was used")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tmp_path


@pytest.fixture
def sd(tmp_path) -> Path:
    """A pipeline of Stable Diffusion 1.5's classes that a test may damage."""
    write_pipeline(tmp_path / "sd")
    return tmp_path / "sd"


def teacher(source: Path | str, *overrides: str) -> list[Line]:
    return [preflight.teacher(parse(compose("smoke", [f"teacher.source={source}", *overrides]), ""))[0]]


def test_a_teacher_is_opened_as_the_stage_opens_it(sd):
    assert not problems(teacher(sd)) and not problems(teacher("tiny"))
    weights = sd / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    assert len(problems(teacher(sd))) == 1
    weights.unlink()
    assert "diffusion_pytorch_model" in problems(teacher(sd))[0]
    (sd / "model_index.json").unlink()
    assert "no model_index.json" in problems(teacher(sd))[0]


def test_a_mirrors_unet_is_compared_with_the_original(sd):
    known = hashlib.sha256((sd / "unet/diffusion_pytorch_model.safetensors").read_bytes()).hexdigest()
    assert teacher(sd, f"teacher.unet_sha256={known}")[0][1].endswith("64 pixels, the original by its UNet's hash")
    (text,) = problems(teacher(sd, "teacher.unet_sha256=abc"))
    assert f"its UNet has sha256 {known}, the original's is abc: put it there" in text


def laion(*shards: str) -> list[Line]:
    data = PictureData(kind="laion", shards=list(shards), resolution=64, test_images=8, coco=CocoData(folder="coco"))
    return list(preflight.shards(data))


def test_every_bad_shard_is_listed_with_the_remedy(laion_folder, tmp_path):
    shutil.copy(laion_folder / "00000.tar", tmp_path / "good.tar")
    (tmp_path / "page.tar").write_bytes(b"<html>not found</html>" * 100)
    with tarfile.open(tmp_path / "uncaptioned.tar", "w") as file, tarfile.open(laion_folder / "00000.tar") as source:
        for member in source:
            if member.name.endswith(".jpg"):
                file.addfile(member, source.extractfile(member))
    lines = laion(f"{tmp_path}/*.tar")
    text = "\n".join(problems(lines))
    assert re.search("page.tar.* holds no samples: download it again", text)
    assert re.search("uncaptioned.tar.* first samples are of no use: 4 samples, 4 missing captions", text)
    assert "matches no file: correct the pattern" in problems(laion(f"{tmp_path}/gone-{{0..4}}.tar"))[0]
    assert "good.tar" not in text and [mark for mark, line in lines if line.startswith("1 shards")] == [OK]


def test_a_folder_is_read_as_the_data_stage_reads_it(laion_folder, tmp_path):
    for path in laion_folder.glob("*.tar"):
        shutil.unpack_archive(path, tmp_path / "mine", "tar")
    facts = {"kind": "folder", "folder": str(tmp_path / "mine"), "resolution": 64, "max_broken_share": 0.05}
    ((mark, text),) = preflight.folder(PictureData(**facts, held_out_share=0.35, test_images=4))
    assert mark == OK and "mine: 72 samples" in text and "1 missing captions" in text
    (few,) = problems(preflight.folder(PictureData(**facts, held_out_share=0.35, test_images=400)))
    assert "800 are needed: add pictures, lower data.test_images, or change data.held_out_share" in few
    (nothing,) = problems(preflight.folder(PictureData(**facts | {"folder": "none"}, test_images=4)))
    assert "data.folder = none holds no pictures" in nothing


def coco(folder: Path, **lists) -> list[Line]:
    return list(preflight.coco(CocoData(folder=str(folder), **lists), {"coco30k": 30, "coco5k": 20}))


def test_caption_lists_that_are_short_or_of_another_set(coco_folder, tmp_path):
    assert [mark for mark, _ in coco(coco_folder)] == [OK, NOTE] * 2  # a draw, for want of a list
    number = int(Path(read_coco(CocoData(folder=str(coco_folder)), "coco30k").images[0]).stem[-12:])
    (tmp_path / "short.csv").write_text(f"image_id,caption\n{number},a dog\n")
    (tmp_path / "other.csv").write_text("image_id,caption\n1,a caption of nothing\n")
    lists = {"captions_30k": str(tmp_path / "short.csv"), "captions_5k": str(tmp_path / "other.csv")}
    short, other = problems(coco(coco_folder, **lists))
    assert "has 1 captions, 30 are drawn: give a longer list" in short and "of no image of val2017" in other


def test_what_the_machine_lacks(monkeypatch, teacher_folder):
    params = parse(compose("smoke", ["training.processes=8", "training.gradient_accumulation_steps=3"]), "")
    pipeline = preflight.teacher(parse(compose("smoke", [f"teacher.source={teacher_folder}"]), ""))[1]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    (text,) = problems(preflight.machine(params, pipeline))
    assert "--set training.processes=3 training.gradient_accumulation_steps=8 keeps the global batch" in text
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 9, 1))
    assert "make room" in problems(preflight.machine(params, pipeline))[0]


NETWORKS = (
    "the FID's network .*: curl -L --create-dirs -o .*inception-2015-12-05.pt",
    r"ViT-L-14/openai: .*open_clip.create_model\('ViT-L-14', 'openai'\).*, or name another",
)
MISSING = {
    "sd15-w3": (
        r"the teacher, .* nor in the hub's local cache: python -c .*\.download\('stable-diffusion-v1-5/",
        *("data.shards", r"wget .*/val2014.zip .*/annotations_trainval2014.zip", "val2017", "ViT-g-14", *NETWORKS),
    ),
    "sd15-night": ("/model: .*put it there", "own/pictures holds no", *NETWORKS),
}


@pytest.mark.parametrize("name", MISSING)
def test_on_a_machine_with_nothing_everything_is_listed_at_once(nothing, capsys, name):
    assert preflight.main([name]) == 1
    text = capsys.readouterr().out
    for part in MISSING[name]:
        assert re.search(f"✗ .*{part}", text), part
    assert f"Not ready: {len(MISSING[name])} of these" in text


def test_a_profile_that_needs_nothing_is_ready_and_a_wrong_one_an_error(nothing, capsys):
    assert preflight.main(["tiny"]) == 0 and "Ready." in capsys.readouterr().out
    with pytest.raises(SystemExit, match="profile sd15-w3:\ntraining: unknown key 'optimiser'"):
        preflight.main(["sd15-w3", "--set", "training.optimiser=sgd"])
