"""The stand-ins: the classes, files and shapes of the real thing, the same for the same seed."""

import hashlib
import json

import pytest
import torch
from PIL import Image

from splam import rehearsal
from splam.data.laion import LaionStream
from splam.models import guided_outputs, load_teacher
from splam.params import CocoData, LaionData


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the command writes."""
    out = tmp_path_factory.mktemp("rehearsal")
    rehearsal.main([str(out)])
    return out


def hashes(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_seed_gives_the_same_bytes(folder, laion_folder, coco_folder, tmp_path):
    rehearsal.write_pipeline(tmp_path, seed=0)
    assert hashes(folder / "laion") == hashes(laion_folder) and hashes(folder / "coco") == hashes(coco_folder)
    assert hashes(folder / "pipeline") == hashes(tmp_path)
    rehearsal.write_laion(tmp_path / "other", seed=1, shards=1, samples=2)
    assert hashes(tmp_path / "other")["00000.tar"] != hashes(laion_folder)["00000.tar"]


def test_the_pipeline_is_a_teacher_of_stable_diffusions_shapes(folder):
    teacher = load_teacher(folder / "pipeline")
    assert teacher.latent_shape == (4, 8, 8) and teacher.prediction_type == "epsilon"
    assert teacher.vae.config.scaling_factor == 0.18215
    assert float(teacher.schedule.alphas[-1]) == pytest.approx(0.0683, abs=1e-4)  # Stable Diffusion's betas
    captions, empty = teacher.embed(["a red apple", "dog"]), teacher.embed([""])
    assert captions.shape == (2, 77, 64) and not torch.equal(captions[0], captions[1])
    latents = teacher.encode(torch.zeros(2, 3, 64, 64))
    conditional, unconditional = guided_outputs(teacher, latents, torch.tensor([999, 19]), captions, empty)
    assert conditional.shape == (2, 4, 8, 8) and not torch.equal(conditional, unconditional)
    assert teacher.decode(latents).shape == (2, 64, 64, 3)


def test_the_pipeline_has_the_blocks_and_files_of_1_5(folder):
    unet = json.loads((folder / "pipeline/unet/config.json").read_text())
    assert unet["down_block_types"] == ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    assert unet["mid_block_type"] == "UNetMidBlock2DCrossAttn" and unet["attention_head_dim"] == 8
    scheduler = json.loads((folder / "pipeline/scheduler/scheduler_config.json").read_text())
    assert scheduler["_class_name"] == "PNDMScheduler" and scheduler["clip_sample"] is False
    assert {"vocab.json", "merges.txt"} <= {path.name for path in (folder / "pipeline/tokenizer").iterdir()}


def test_the_tokenizer_puts_its_words_together_and_loses_no_letter(folder):
    tokenizer = load_teacher(folder / "pipeline").tokenizer
    assert tokenizer.tokenize("a red background") == ["a</w>", "red</w>", "background</w>"]
    assert "".join(tokenizer.tokenize("Zürich 7")) == "zÃ¼rich</w>7</w>"
    ids = tokenizer("red", padding="max_length").input_ids
    assert len(ids) == 77 and ids[0] == tokenizer.bos_token_id and ids[2] == tokenizer.eos_token_id


def test_the_shards_hold_one_broken_image_and_one_missing_caption(folder):
    shards = LaionData(
        kind="laion",
        shards=[str(folder / "laion" / "*.tar")],
        resolution=64,
        workers=0,
        shuffle_buffer=1,
        max_broken_share=0.1,
        held_out_share=1e-9,
        test_images=1,
        coco=CocoData(folder="coco"),
    )
    stream = LaionStream(shards, 70, seed=0)  # an epoch without them is 71 samples
    pixels, _ = next(stream.batches())
    assert pixels.shape == (70, 3, 64, 64)
    assert (stream.counts.broken_images, stream.counts.missing_captions) == (1, 1)


def test_coco_files_are_named_and_linked_as_cocos(folder):
    for split, count in rehearsal.COCO_COUNTS.items():
        content = json.loads((folder / "coco/annotations" / f"captions_{split}.json").read_text())
        assert len(content["images"]) == count and len(content["annotations"]) == 2 * count
        assert {a["image_id"] for a in content["annotations"]} == {i["id"] for i in content["images"]}
        entry = content["images"][0]
        with Image.open(folder / "coco" / split / entry["file_name"]) as image:
            assert image.size == (entry["width"], entry["height"])
    assert (folder / "coco/val2014/COCO_val2014_000000000042.jpg").is_file()
    assert (folder / "coco/val2017/000000000042.jpg").is_file()
