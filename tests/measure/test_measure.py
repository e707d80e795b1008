"""References that are seen in batches and named as a whole, and rows over the first images."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest

from splam.measure.clip import clip_score
from splam.measure.fid import FeatureStatistics, fid
from splam.measure.measure import Measure, Paired, References, make_references, rmse
from tests.measure.conftest import CLIPS, IMAGES, Clip, extract, held_out


@pytest.fixture
def references(stand_ins, teacher) -> References:
    return make_references(teacher, held_out(), CLIPS, "inception")


def test_references_are_seen_in_batches_and_named_as_a_whole(references, tmp_path):
    references.save(tmp_path / "new/a.npz")
    loaded = References.load(tmp_path / "new/a.npz")
    assert (loaded.features == extract(IMAGES)).all() and loaded.size == 48
    assert loaded.quote == {
        "protocol": "a-set",
        "fid_name": "FID (Inception)",
        "clip_name": "CLIP score (a stand-in)",
        "references": hashlib.sha256(IMAGES.tobytes()).hexdigest()[:16],
        "captions": hashlib.sha256(json.dumps(held_out().prompts).encode()).hexdigest()[:16],
    }
    assert loaded.prompts == held_out().prompts and (loaded.radii == references.radii).all()
    with pytest.raises(FileNotFoundError, match="run the references stage"):
        References.load(tmp_path / "b.npz")


def test_a_row_is_about_the_first_images(references):
    images = IMAGES[10:19]
    row = Measure(references, extract, CLIPS)(images)
    first, alone = row(5), Measure(references, extract, CLIPS)(images[:5])(5)
    assert first == pytest.approx(alone) and first != row(9) and first["images"] == 5
    drawn = FeatureStatistics.of(extract(images[:5]))
    assert first["fid"] == fid(FeatureStatistics.of(extract(IMAGES)), drawn)
    text = CLIPS["clip_score"].text_features(references.prompts[:5])
    assert first["clip_score"] == clip_score(CLIPS["clip_score"].image_features(images[:5]), text)


def test_the_teachers_images_are_compared_pair_by_pair(references):
    images, row = IMAGES[:9], Measure(references, extract, CLIPS)(IMAGES[:9])
    same = row(9, Paired(images, extract(images)))
    assert same["rmse_teacher"] == 0 and same["fid_teacher"] == pytest.approx(0, abs=1e-6)
    turned = row(9, Paired(images[::-1], extract(images[::-1])))
    assert turned["rmse_teacher"] > 0.1 and turned["fid_teacher"] == pytest.approx(0, abs=1e-6)
    assert "fid_teacher" not in row(9)


def test_caption_accuracy_is_the_share_that_is_told_from_every_other_caption(stand_ins, teacher):
    """To the stand-in, every image is most like the longest caption, the ninth image's own."""
    made = make_references(teacher, replace(held_out(), choices=held_out().prompts[::-1]), CLIPS, "inception")
    row = Measure(made, extract, CLIPS)(IMAGES[:9])
    assert (row(9)["caption_accuracy"], row(8)["caption_accuracy"]) == (1 / 9, 0)


def test_a_second_clip_score_stands_beside_the_first(stand_ins, teacher):
    clips = CLIPS | {"clip_score_beside": Clip("CLIP score (another)", brightness=0.5)}
    made = make_references(teacher, held_out(), clips, "inception")
    assert made.quote["clip_name_beside"] == "CLIP score (another)"
    row = Measure(made, extract, clips)(IMAGES[:9])(9)
    assert 0 < row["clip_score"] != row["clip_score_beside"] > 0


def test_rmse_is_the_mean_over_images_of_their_own():
    black, half = np.zeros((2, 4, 8, 8, 3), np.uint8)
    half[2:, :4] = 255
    assert rmse(black, half) == pytest.approx(0.5**0.5 / 2) == pytest.approx(rmse(half, black))
