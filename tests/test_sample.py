"""Drawing with a student: stock diffusers, one file for each prompt and seed, and clear errors."""

import re

import numpy as np
import pytest
from PIL import Image

from splam import sample
from splam.loss import Objective, published_function
from splam.models import export_pipeline, load_teacher
from splam.sampling import generators, sample_consistency


@pytest.fixture(scope="module")
def student(teacher, tmp_path_factory):
    """The teacher itself, published as a student is."""
    folder = tmp_path_factory.mktemp("student")
    export_pipeline(teacher.unet, teacher.folder, folder)
    return folder


def test_an_image_is_the_one_that_is_measured(student, tmp_path, capsys):
    """What the evaluation draws of the same caption and seed, to rounding."""
    out = tmp_path / "new/x.png"
    assert sample.main(["--model", str(student), "a red dog", "--steps", "2", "--seed", "5", "--out", str(out)]) == 0
    assert capsys.readouterr().out.split() == [str(out)]
    teacher = load_teacher(student)
    network = teacher.network(teacher.unet, teacher.embed(["a red dog"]))
    consistency = published_function(network, Objective(teacher.schedule, teacher.prediction_type))
    latents = sample_consistency(consistency, generators([5]), teacher.latent_shape, 2, teacher.schedule)
    expected = teacher.decode(latents).numpy()[0].astype(int)
    assert np.abs(np.asarray(Image.open(out)).astype(int) - expected).max() <= 1


def test_several_prompts_and_seeds_make_numbered_files(student, tmp_path):
    arguments = ["--model", str(student), "a dog", "a cat", "--steps", "1", "--out", str(tmp_path / "x.png")]
    assert sample.main([*arguments, "--seed", "0", "7"]) == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["x-1-s0.png", "x-1-s7.png", "x-2-s0.png", "x-2-s7.png"]
    images = [np.asarray(Image.open(tmp_path / name)) for name in names]
    assert not any((images[0] == other).all() for other in images[1:])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            ["--model", "none", "--", "a dog"],
            "none is no student's folder .* the distill stage writes them as build/runs/RUN/pipeline",
        ),
        (["--", "a dog", " "], "prompt 2 is empty: say what to draw"),
        (["--out", "x.txt", "--", "a dog"], "--out x.txt has no image's file type"),
    ],
)
def test_mistakes_are_named(student, capsys, changed, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sample.main(["--model", str(student), "--out", "x.png", *changed]) == 1
    assert re.search(message, capsys.readouterr().err)


def test_help_says_what_a_model_is(capsys):
    with pytest.raises(SystemExit):
        sample.main(["--help"])
    assert "build/runs/RUN/pipeline" in capsys.readouterr().out
