"""The stand-ins: the classes, files and shapes of the real thing, the same for the same seed."""

import hashlib

import pytest
import torch

from splam.networks.teacher import load_teacher
from tests.standins import sd


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the command writes."""
    out = tmp_path_factory.mktemp("standins")
    sd.main([str(out)])
    return out


@pytest.fixture(scope="module")
def teacher(folder):
    return load_teacher(folder / "pipeline")


def hashes(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_seed_gives_the_same_bytes(folder, laion_folder, coco_folder, tmp_path):
    sd.write_pipeline(tmp_path, seed=0)
    assert hashes(folder / "laion") == hashes(laion_folder) and hashes(folder / "coco") == hashes(coco_folder)
    assert hashes(folder / "pipeline") == hashes(tmp_path)


def test_the_pipeline_is_a_teacher_of_stable_diffusions_shapes(teacher):
    assert teacher.latent_shape == (4, 8, 8) and teacher.prediction_type == "epsilon"
    assert float(teacher.schedule.alphas[-1]) == pytest.approx(0.0683, abs=1e-4)  # Stable Diffusion's betas
    captions = teacher.embed(["a red apple", "dog"])
    assert captions.shape == (2, 77, 64) and not torch.equal(captions[0], captions[1])
    latents = teacher.encode(torch.zeros(2, 3, 64, 64))
    conditional, unconditional = teacher.epsilons(latents, torch.tensor([999, 19]), captions)
    assert conditional.shape == (2, 4, 8, 8) and not torch.equal(conditional, unconditional)


def test_the_tokenizer_puts_its_words_together_and_loses_no_letter(teacher):
    assert teacher.tokenizer.tokenize("a red background") == ["a</w>", "red</w>", "background</w>"]
    assert "".join(teacher.tokenizer.tokenize("Zürich 7")) == "zÃ¼rich</w>7</w>"
    ids = teacher.tokenizer("red", padding="max_length").input_ids
    assert len(ids) == 77 and ids[0] == teacher.tokenizer.bos_token_id and ids[2] == teacher.tokenizer.eos_token_id
