"""The gate: a teacher that gives the known number, one that does not, and numbers it says nothing about."""

import pytest

from splam.config import Gate
from splam.report.page import check_gate

GATE = Gate(fid=8.0, tolerance=0.5, guidance_scale=3, images=1000, sets=["coco30k", "coco30k-seeded-draw"])


@pytest.mark.parametrize(
    ("fid", "facts", "status", "reason"),
    [
        (7.5, {}, "passed", "the teacher's FID is 7.50"),
        (8.5, {}, "passed", "on coco30k"),
        (8.51, {}, "not passed", "find out why"),
        (8.0, {"method": "SPLAM"}, "not passed", "not been measured"),
        (8.0, {"fid_name": "FID (EfficientNet-Lite0)"}, "not applicable", "the FID is FID (EfficientNet-Lite0)"),
        (8.0, {"fid_name": ""}, "not applicable", "the FID is of unrecorded features"),
        (8.0, {"protocol": "coco30k-at-32"}, "not applicable", "the test set is coco30k-at-32"),
        (8.0, {"images": 500}, "not applicable", "500 images were drawn, not 1,000"),
    ],
)
def test_the_teacher_must_give_the_known_number_where_it_is_the_same_measurement(metrics, fid, facts, status, reason):
    found = metrics.rows
    teacher = (found["method"] == "Teacher") & (found["guidance_scale"] == 3) & (found["dataset"] == "unseen")
    kind = {"fid_name": "FID (Inception)", "protocol": "coco30k"} | facts
    said = check_gate(found.assign(fid=found["fid"].mask(teacher, fid), **kind), GATE, 50)
    assert said[0] == status and reason in said[1]
    assert check_gate(found, None, 50)[0] == "not applicable"
