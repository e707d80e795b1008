"""Drawing with a student: stock diffusers, one file for each prompt and seed, mistakes told before the drawing."""

import numpy as np
import pytest
from PIL import Image

from splam.networks import sample
from splam.networks.export import export_pipeline
from splam.networks.pipelines import draw_images, open_any


@pytest.fixture(scope="module")
def student(teacher, tmp_path_factory):
    """The teacher itself, published as a student is."""
    folder = tmp_path_factory.mktemp("student")
    export_pipeline(teacher.unet, teacher.folder, folder)
    return folder


def test_an_image_is_the_one_that_is_measured(student, tmp_path, capsys):
    out = tmp_path / "new/x.png"
    sample.main(["--model", str(student), "a red dog", "--steps", "2", "--seed", "5", "--out", str(out)])
    assert capsys.readouterr().out.split() == [str(out)]
    assert (np.asarray(Image.open(out)) == draw_images(open_any(student), ["a red dog"], [5], 2, 1.0)[0]).all()


def test_several_prompts_and_seeds_make_numbered_files(student, tmp_path):
    arguments = ["--model", str(student), "a dog", "a cat", "--steps", "1", "--out", str(tmp_path / "x.png")]
    sample.main([*arguments, "--seed", "0", "7"])
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["x-1-s0.png", "x-1-s7.png", "x-2-s0.png", "x-2-s7.png"]
    assert len({Image.open(tmp_path / name).tobytes() for name in names}) == 4


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--model", "none", "--", "a dog"], "none is neither a pipeline's folder"),
        (["--", "a dog", " "], "a prompt is empty"),
        (["--out", "x.txt", "--", "a dog"], "--out x.txt: no image of this type can be written"),
        (["--out", "x.psd", "--", "a dog"], "--out x.psd: no image of this type"),  # read, not written
        (["--seed", "0", "-1", "--", "a dog"], "seeds are from 0"),
        (["--seed", str(2**63), "--", "a dog"], "seeds are from 0"),
    ],
)
def test_mistakes_are_told_before_anything_is_drawn(student, capsys, changed, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sample, "draw_images", None)
    with pytest.raises(SystemExit, match="2"):
        sample.main(["--model", str(student), "--out", "x.png", *changed])
    assert message in capsys.readouterr().err and not [*tmp_path.iterdir()]
