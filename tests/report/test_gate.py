"""The gate: a teacher that gives the known number, one that does not, and numbers it says nothing about."""

import pandas as pd
import pytest

from splam.config import Gate
from splam.report.metrics import Metrics
from splam.report.page import check_gate

GATE = Gate(fid=8.0, tolerance=0.5, guidance_scale=3, images=1000, sets=["coco30k", "coco30k-seeded-draw"])


def rows(metrics: Metrics, fid: float, **facts: object) -> pd.DataFrame:
    """Rows in which the teacher at w = 3 has this FID."""
    found = metrics.rows
    teacher = (found["method"] == "Teacher") & (found["guidance_scale"] == 3) & (found["dataset"] == "unseen")
    kind = {"fid_name": "FID (Inception)", "protocol": "coco30k"} | facts
    return found.assign(fid=found["fid"].mask(teacher, fid), **kind)


@pytest.mark.parametrize("fid", [7.5, 8.03, 8.5])
def test_a_teacher_within_the_tolerance_passes(metrics, fid):
    status, reason = check_gate(rows(metrics, fid), GATE, 50)
    assert status == "passed" and f"{fid:.2f}" in reason and "coco30k" in reason


def test_without_a_measured_teacher_nothing_is_believed(metrics):
    frame = rows(metrics, 8.0)
    status, reason = check_gate(frame[frame["method"] != "Teacher"], GATE, 50)
    assert status == "not passed" and "not been measured" in reason


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"fid_name": "FID (EfficientNet-Lite0)"}, "the FID is FID (EfficientNet-Lite0)"),
        ({"fid_name": ""}, "the FID is of unrecorded features"),
        ({"protocol": "coco30k-at-32"}, "the test set is coco30k-at-32"),
        ({"images": 500}, "500 images were drawn, not 1,000"),
    ],
)
def test_numbers_of_another_kind_are_not_held_to_it(metrics, facts, reason):
    status, why = check_gate(rows(metrics, 8.0, **facts), GATE, 50)
    assert status == "not applicable" and reason in why


def test_a_profile_without_a_gate(metrics):
    assert check_gate(rows(metrics, 8.0), None, 50)[0] == "not applicable"
