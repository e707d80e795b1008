"""Rows of runs, baselines, pipelines and floors: what is drawn, what it is compared with, what stands beside it."""

import json

import numpy as np
import pytest

from splam.data.images import resize, to_pixels
from splam.measure.draw import baseline_draw, in_batches, student_draw
from splam.measure.evaluate import COLUMNS, Bench, evaluate, floor_rows, floors, reconstructions, summary
from splam.measure.measure import Measure, References, make_references
from splam.networks.student import load_unet
from tests.measure.conftest import CLIPS, IMAGES, extract, held_out, small_params


def drawn(rows: list[dict]) -> list[tuple]:
    return [(row["dataset"], row["steps"], row["guidance_scale"], row["images"], row["iteration"]) for row in rows]


@pytest.fixture
def run_folder(built, teacher):
    """A run whose student is the teacher, and whose snapshot at iteration 2 draws nothing but one colour."""
    folder = built / "runs/splam-w3-k20"
    for weights in ("pipeline/unet", "snapshots/000002", "snapshots/000005"):
        teacher.unet.save_pretrained(folder / weights)
    unet = load_unet(folder / "snapshots/000002", teacher.unet)
    unet.conv_out.weight.zero_()
    unet.save_pretrained(folder / "snapshots/000002")
    return built


def test_a_runs_rows(run_folder, params, teacher):
    seen = {}
    rows = evaluate(params, "splam-w3-k20", run_folder, lambda dataset, steps, images: seen.setdefault(steps, images))
    assert drawn(rows) == [
        ("unseen", 1, 3, 9, 5), ("unseen-small", 1, 3, 5, 5), ("unseen", 2, 3, 9, 5), ("unseen-small", 2, 3, 5, 5),
        ("unseen-curve", 2, 3, 4, 2), ("unseen-curve", 2, 3, 4, 5),
    ]  # fmt: skip
    assert [row["final"] for row in rows] == [True] * 4 + [False, True]
    assert all(tuple(row) == COLUMNS for row in rows)
    facts = {"system": "splam-w3-k20", "run": "splam-w3-k20", "method": "SPLAM", "variant": "scaled input", "skip": 20}
    facts |= {"multiple_estimation": True, "seed": 0, "ablation": False, "sampler": "consistency", "dtype": "float32"}
    facts |= {"protocol": "a-set", "first_sample_seed": 1_000_000, "fid_name": "FID (Inception)", "fid_teacher": None}
    assert facts.items() <= rows[0].items()
    references = References.load(run_folder / "references/unseen.npz")
    assert rows[0]["references"] == references.quote["references"] != rows[0]["captions"]
    draw = student_draw(teacher, teacher.unet, params.runs["splam-w3-k20"])
    expected = in_batches(draw, references.prompts, 1, params, 48)
    assert (seen[1] == expected).all()
    measured = Measure(references, extract, CLIPS)(expected)
    assert measured(5).items() <= rows[1].items()
    assert rows[4]["fid"] != rows[5]["fid"]


def test_the_undistilled_network_is_drawn_once_and_compared_at_every_w(built, params, teacher):
    references = References.load(built / "references/unseen.npz")
    images = in_batches(baseline_draw(teacher, "consistency", 1.0), references.prompts, 2, params, 48)
    (built / "teacher_samples").mkdir()
    np.save(built / "teacher_samples/w3.npy", images)  # as if the teacher drew the same
    shown = []
    rows = evaluate(params, "undistilled", built, lambda *key: shown.append(key[:2]))
    assert shown == [("unseen", 1), ("unseen", 2), ("unseen", 4), ("unseen-curve", 2)]
    near = [r for r in rows if r["steps"] == 2 and r["guidance_scale"] == 3]
    assert drawn(near)[-1] == ("unseen-curve", 2, 3, 4, 0)
    assert all(r["rmse_teacher"] == 0 and r["fid_teacher"] == pytest.approx(0, abs=1e-6) for r in near)
    assert {r["method"] for r in rows} == {"Undistilled"} and {r["sampler"] for r in rows} == {"consistency"}
    others = [r for r in rows if r["guidance_scale"] == 8]
    assert len(others) == len(rows) / 2 and not any(r["fid_teacher"] for r in others)
    assert next(r for r in rows if r["steps"] == 1)["fid_teacher"] > 1
    guided = evaluate(small_params("baselines.undistilled.drawn_at=null"), "undistilled", built)
    assert [r["guidance_scale"] for r in guided] == [3] * 6 + [8] * 6 and "unseen-curve" not in str(guided)
    assert guided[2]["fid"] != near[0]["fid"] and guided[2]["fid_teacher"] != guided[8]["fid_teacher"]


def test_the_teachers_row_is_of_the_images_that_are_there(built, teacher):
    params = small_params("baselines.teacher.steps=[3]", "baselines.ddim.steps=[2]")
    (built / "teacher_samples").mkdir()
    np.save(built / "teacher_samples/w8.npy", IMAGES[:9])
    rows = [row for row in evaluate(params, "teacher", built) if row["dataset"] == "unseen"]
    captions = References.load(built / "references/unseen.npz").prompts
    expected = in_batches(baseline_draw(teacher, "ddim", 3.0), captions, 3, params, 48)
    assert [row["guidance_scale"] for row in rows] == [3, 8] and rows[0]["fid_teacher"] is None
    for row, images in zip(rows, (expected, IMAGES[:9]), strict=True):
        measured = Measure(References.load(built / "references/unseen.npz"), extract, CLIPS)(images)(9)
        assert measured.items() <= row.items()
    assert rows[1]["rmse_teacher"] == 0 and rows[1]["sampler"] == "ddim, trailing" and rows[1]["run"] is None
    other = next(row for row in evaluate(params, "ddim", built) if row["guidance_scale"] == 8)
    assert other["rmse_teacher"] > 0


def test_a_pipeline_is_measured_by_the_same_captions_and_seeds(built, teacher, teacher_folder):
    """The teacher itself, opened as somebody else's pipeline, gives the rows of the teacher's network, but no pairs."""
    row = {"method": "Other", "source": str(teacher_folder), "scheduler": "LCMScheduler", "steps": [2]}
    params = small_params(f"pipelines.other={json.dumps(row | {'guidance_scale': 1, 'dtype': 'float32'})}")
    (built / "teacher_samples").mkdir()
    np.save(built / "teacher_samples/w1.npy", IMAGES[:9])
    whole, _ = evaluate(params, "other", built)
    same = next(r for r in evaluate(params, "undistilled", built) if r["steps"] == 2)
    assert whole["fid"] == pytest.approx(same["fid"], rel=0.01) and whole["rmse_teacher"] is None
    assert (whole["method"], whole["sampler"], whole["dtype"]) == ("Other", "LCMScheduler", "float32")


def test_a_set_of_its_own_is_not_cut_from_the_unseen_one(built, params, monkeypatch):
    bench = Bench(params, built)
    assert bench.counts("unseen") == {"unseen": 9, "unseen-small": 5}
    monkeypatch.setattr("splam.measure.evaluate.dataset_sizes", lambda params: ("unseen", "unseen-small", "seen"))
    assert bench.counts("unseen") == {"unseen": 9}


def test_unknown_names_are_answered_with_the_closest(params, tmp_path):
    with pytest.raises(ValueError, match="no run, baseline or pipeline 'splam-w3-k2'; did you mean 'splam-w3-k20'?"):
        evaluate(params, "splam-w3-k2", tmp_path)


def test_reconstructions_are_made_at_the_teachers_size(teacher):
    made = reconstructions(teacher, held_out(), 4)
    assert made.shape == (9, 48, 48, 3) and made.dtype == np.uint8
    pixels = to_pixels(resize(IMAGES[:4], teacher.image_size))
    assert (made[:4] == resize(teacher.decode(teacher.encode(pixels)).numpy(), 48)).all()


@pytest.mark.parametrize("independent", [True, False])
def test_floors_leave_out_what_compares_images_with_themselves(stand_ins, teacher, independent):
    held = held_out(independent)
    measure = Measure(make_references(teacher, held, CLIPS, "inception"), extract, CLIPS)
    rows = list(floors(teacher, measure, held, {"unseen": 9, "unseen-small": 5}, 4))
    real, real_small, rebuilt, rebuilt_small, shuffled = rows
    assert [row["method"] for row in rows[1:4]] == ["Real images", "VAE reconstruction", "VAE reconstruction"]
    assert [row["dataset"] for row in (real, real_small, rebuilt_small)] == ["unseen", "unseen-small", "unseen-small"]
    assert [row["images"] for row in rows] == [9, 5, 9, 5, 9]
    assert (real["fid"] is None) == (real_small["recall"] is None) == (not independent)
    assert rebuilt["fid"] > 0 and real["clip_score"] > 0 and shuffled["fid"] is None
    assert shuffled["clip_score"] != real["clip_score"]


def test_floors_are_rows_too(built, params, monkeypatch):
    monkeypatch.setattr("splam.measure.evaluate.dataset_sizes", lambda params: ("unseen",))
    monkeypatch.setattr("splam.measure.evaluate.held_out_set", lambda *_: held_out())
    rows = list(floor_rows(Bench(params, built), built))
    assert all(set(row) == set(COLUMNS) and row["system"] == "floors" and row["protocol"] == "a-set" for row in rows)
    assert summary(rows)["unseen"].keys() == {
        "fid_real_images", "clip_score_real_images",
        "fid_vae_reconstruction", "clip_score_vae_reconstruction", "clip_score_shuffled_captions",
    }  # fmt: skip


def test_the_summary_is_nested_numbers_by_dataset_and_steps():
    row = {"dataset": "unseen", "steps": 4, "guidance_scale": 3.0, "fid": 812.34, "fid_teacher": None}
    rows = [row | {"clip_score": 61.237}, row | {"dataset": "unseen-curve", "clip_score": 1.0}]
    assert summary(rows) == {"unseen": {"fid_4": 812.3, "clip_score_4": 61.24}}
    assert summary([*rows, rows[0] | {"guidance_scale": 8.0, "fid": 1.0}])["unseen"] == {
        "fid_4_w3": 812.3, "clip_score_4_w3": 61.24, "fid_4_w8": 1.0, "clip_score_4_w8": 61.24,
    }  # fmt: skip
