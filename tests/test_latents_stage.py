"""The latents stage: what it encodes is what a training would have encoded, killed or not, and a training reads it."""

import shutil
from argparse import Namespace

import pytest
import torch
from runs import small_run
from standins import save_sd

from splam import latents as module
from splam.data.latents import LatentShards
from splam.latents import encode_latents, facts_of, write_summary
from splam.models import load_teacher
from splam.online import image_stream
from splam.params import Params, ParamsError, compose
from splam.train import open_source

SETTINGS = ["latents={images: 10, batch_size: 4, batches_per_file: 2}", "data.resolution=32", "data.max_broken_share=1"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return load_teacher(save_sd(tmp_path_factory.mktemp("sd")))


@pytest.fixture
def params(laion_folder):
    return profile(laion_folder)


def profile(laion_folder, *overrides: str) -> Params:
    shards = f"data.shards=['{laion_folder}/*.tar']"
    return Params.model_validate(compose("rehearsal", overrides=[*SETTINGS, shards, *overrides]))


@pytest.fixture
def data(tmp_path):
    """What the data stage leaves of shards: their manifest."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/manifest.json").write_text("{}")
    return tmp_path / "data"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_means_are_what_a_training_would_encode(laion_folder, teacher, data, tmp_path):
    params = profile(laion_folder, "training.latents=mean", "latents.dtype=float32")
    encode_latents(params, teacher, data, tmp_path / "out")
    kept = LatentShards(tmp_path / "out")
    batches = image_stream(params.data, data, 4, params.seed).batches()
    for number in range(3):  # 10 images are three whole batches of 4
        pixels, captions = next(batches)
        latents, embeddings = kept.rows(range(4 * number, 4 * number + 4))
        torch.testing.assert_close(latents, teacher.encode(pixels))
        torch.testing.assert_close(embeddings, teacher.embed(captions))
    assert len(kept) == 12 and kept.sizes == [8, 4]


def test_samples_are_drawn_once_and_a_stopped_stage_draws_the_same(params, teacher, data, tmp_path, monkeypatch):
    encode_latents(params, teacher, data, tmp_path / "whole")
    (kept,) = LatentShards(tmp_path / "whole").rows([0, 1])[:1]
    pixels, _ = next(image_stream(params.data, data, 4, params.seed).batches())
    mean, deviation = teacher.encode_distribution(pixels[:2])
    moved = ((kept - mean) / deviation).abs()
    assert 0.4 < moved.mean() < 1.2 and not torch.equal(kept[0], kept[1])  # of a standard normal: 0.8

    def stopped(*arguments):
        stream = image_stream(*arguments)

        def batches(start):
            for number, batch in enumerate(stream.batches(start)):
                if number == 2:
                    raise KeyboardInterrupt
                yield batch

        return Namespace(batches=batches)

    monkeypatch.setattr(module, "image_stream", stopped)
    with pytest.raises(KeyboardInterrupt):
        encode_latents(params, teacher, data, tmp_path / "resumed")
    assert len(list((tmp_path / "resumed").glob("*.safetensors"))) == 1
    monkeypatch.undo()
    encode_latents(params, teacher, data, tmp_path / "resumed")
    assert contents(tmp_path / "resumed") == contents(tmp_path / "whole")


def test_what_they_depend_on_is_known_and_other_latents_are_replaced(params, teacher, laion_folder, data, tmp_path):
    facts = facts_of(params, teacher.folder, data)
    assert {path.split("/")[0] for path in facts["teacher"]} == {"vae", "text_encoder", "tokenizer"}
    assert facts == facts_of(profile(laion_folder, "data.coco.folder=x"), teacher.folder, data)
    encode_latents(params, teacher, data, tmp_path / "out")
    before = write_summary(LatentShards(tmp_path / "out"), tmp_path / "a.json")
    (data / "manifest.json").write_text('{"shards": []}')
    encode_latents(params, teacher, data, tmp_path / "out")
    after = write_summary(LatentShards(tmp_path / "out"), tmp_path / "b.json")
    assert before["files"] == after["files"] and before["plan"] != after["plan"]  # DVC sees it
    assert (after["images"], after["latent"], after["embedding"]) == (12, [4, 8, 8], [10, 16])
    assert after["bytes"] == sum(after["files"].values())


def test_a_training_reads_them_and_is_keyed_by_them(params, teacher, data, tmp_path):
    resolved = small_run(source="latents", batch_size=2, accumulation=2)
    folders = Namespace(data=data, latents=tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"run the latents stage first \(dvc repro -fs latents\), or set"):
        open_source(params, resolved, teacher, folders)
    encode_latents(params, teacher, data, folders.latents)
    source, key = open_source(params, resolved, teacher, folders)
    assert source.batch(0, 0, 2).paths.z_t.shape == (2, 4, 8, 8)
    assert LatentShards(folders.latents).plan in key
    shutil.move(folders.latents / "000001.safetensors", tmp_path)
    with pytest.raises(ValueError, match="has 1 of 2 files: run the latents stage again"):
        open_source(params, resolved, teacher, folders)


def test_a_profile_that_does_not_say_how_many(teacher, data, tmp_path):
    params = Params.model_validate(compose("smoke"))
    with pytest.raises(ParamsError, match="profile smoke has no section latents: set latents.images"):
        encode_latents(params, teacher, data, tmp_path)
