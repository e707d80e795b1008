"""The gate: a teacher that gives the known number, one that does not, and numbers it says nothing about."""

from __future__ import annotations

import pandas as pd
import pytest
from synthetic_metrics import PROTOCOL, baseline_rows

from splam.gate import check_gate
from splam.params import Gate

COCO = {**PROTOCOL, "fid": "FID (Inception)", "set": "coco30k"}
GATE = Gate(fid=8.0, tolerance=0.5, guidance_scale=3, steps=50, images=1000, sets=["coco30k", "coco30k-seeded-draw"])


def rows(fid: float, images: int = 1000) -> pd.DataFrame:
    """Synthetic rows in which the teacher at w = 3 has this FID."""
    frame = pd.DataFrame(baseline_rows())
    teacher = (frame["method"] == "Teacher") & (frame["guidance_scale"] == 3) & (frame["dataset"] == "unseen")
    return frame.assign(fid=frame["fid"].mask(teacher, fid), images=frame["images"].mask(teacher, images))


@pytest.mark.parametrize("fid", [7.5, 8.03, 8.5])
def test_a_teacher_within_the_tolerance_passes(fid):
    result = check_gate(rows(fid), COCO, GATE)
    assert result.status == "passed" and f"{fid:.2f}" in result.reason and "coco30k" in result.reason


@pytest.mark.parametrize("fid", [6.9, 8.51, 18.8])
def test_a_teacher_too_far_off_either_way_does_not(fid):
    result = check_gate(rows(fid), COCO, GATE)
    assert result.status == "not passed" and "before believing" in str(result)


def test_without_a_measured_teacher_nothing_is_believed():
    frame = rows(8.0)
    result = check_gate(frame[frame["method"] != "Teacher"], COCO, GATE)
    assert result.status == "not passed" and "not been measured" in result.reason


@pytest.mark.parametrize(
    ("protocol", "images", "reason"),
    [
        (PROTOCOL, 1000, "the FID is FID (EfficientNet-Lite0)"),
        (COCO | {"set": "coco30k-at-32"}, 1000, "the test set is coco30k-at-32"),
        (COCO, 500, "500 images were drawn, not 1,000"),
    ],
)
def test_numbers_of_another_kind_are_not_held_to_it(protocol, images, reason):
    result = check_gate(rows(8.0, images), protocol, GATE)
    assert result.status == "not applicable" and reason in result.reason


def test_a_profile_without_a_gate():
    assert check_gate(rows(8.0), COCO, None).status == "not applicable"


def test_a_seeded_draw_of_the_same_set_is_named():
    result = check_gate(rows(8.0), COCO | {"set": "coco30k-seeded-draw"}, GATE)
    assert result.status == "passed" and "seeded-draw" in result.reason
