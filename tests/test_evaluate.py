"""Evaluation over test sets of any kind: references seen in batches, lazy embeddings, resized samples, the floors."""

import json

import numpy as np
import pytest
import torch

from splam import evaluate
from splam.data.testsets import HeldOut
from splam.evaluate import (
    Measure,
    PromptEmbeddings,
    References,
    dataset_floors,
    in_batches,
    make_references,
    native_size,
    prompt_embeddings,
    reconstructions,
)
from splam.metrics import FeatureStatistics, array_hash
from splam.params import Params, compose

IMAGES = np.random.default_rng(0).integers(0, 256, (24, 48, 48, 3), np.uint8)


class Clip:
    """Stands in for a CLIP model: two numbers of an image, and of a caption."""

    def image_features(self, images):
        return np.stack([images.mean((1, 2, 3)), np.ones(len(images))], 1)

    def text_features(self, captions):
        return np.stack([[len(caption) for caption in captions], np.ones(len(captions))], 1)


CLIPS = {"clip_score": Clip()}


def extract(images):
    """Stands in for a feature network: three numbers of an image."""
    return np.stack([images[..., i].mean((1, 2)) for i in range(3)], 1).astype(np.float32)


def held_out(independent: bool) -> HeldOut:
    prompts = [f"image {i}" * (i + 1) for i in range(9)]
    references = lambda: iter(np.split(IMAGES, 4))  # noqa: E731
    real = lambda size: iter([evaluate.resize(IMAGES[:4], size), evaluate.resize(IMAGES[4:9], size)])  # noqa: E731
    return HeldOut("a-set", prompts, 48, len(IMAGES), references, real, independent)


@pytest.fixture
def stand_ins(monkeypatch):
    monkeypatch.setattr(evaluate, "load_features", lambda name, device="cpu": extract)
    monkeypatch.setattr(evaluate, "load_clip", lambda source, prefix="", device="cpu": Clip())


@pytest.fixture
def params():
    return Params.model_validate(compose("smoke", overrides=["evaluation.batch_size=4"]))


def test_references_are_seen_in_batches_and_named_as_a_whole(stand_ins, teacher, tmp_path):
    made = make_references(teacher, held_out(True), CLIPS, "inception")
    assert made.hashes["references"] == array_hash(IMAGES) and (made.features == extract(IMAGES)).all()
    made.save(tmp_path / "a.npz")
    loaded = References.load(tmp_path / "a.npz")
    assert (loaded.protocol, loaded.size, loaded.prompts) == ("a-set", 48, made.prompts)
    assert torch.equal(prompt_embeddings(teacher, loaded), teacher.embed(made.prompts))


def test_large_embeddings_are_made_when_asked_for(stand_ins, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "STORED_EMBEDDINGS", 1000)
    made = make_references(teacher, held_out(True), CLIPS, "inception")
    lazy = prompt_embeddings(teacher, made)
    assert made.captions.nbytes == 0 and isinstance(lazy, PromptEmbeddings) and len(lazy) == 9
    assert torch.equal(lazy[2:4], teacher.embed(made.prompts[2:4]))


def test_samples_are_resized_as_they_are_drawn(params):
    def draw(rows, seeds):
        assert len(seeds) == rows.stop - rows.start <= 4
        return torch.from_numpy(IMAGES[rows])

    assert (in_batches(draw, params, 10, "x") == IMAGES[:10]).all()
    assert (in_batches(draw, params, 10, "x", 48) == IMAGES[:10]).all()
    assert (in_batches(draw, params, 10, "x", 24) == evaluate.resize(IMAGES[:10], 24)).all()


def test_reconstructions_are_made_at_the_teachers_size(teacher):
    assert native_size(teacher) == 32
    made = reconstructions(teacher, held_out(True), 4)
    assert made.shape == (9, 48, 48, 3) and made.dtype == np.uint8
    pixels = evaluate.to_pixels(evaluate.resize(IMAGES[:4], 32))
    assert (made[:4] == evaluate.resize(teacher.decode(teacher.encode(pixels)).numpy(), 48)).all()


@pytest.mark.parametrize("independent", [True, False])
def test_floors_leave_out_what_compares_images_with_themselves(stand_ins, teacher, independent):
    held = held_out(independent)
    references = make_references(teacher, held, CLIPS, "inception")
    measure = Measure(references, FeatureStatistics.of(references.features), extract, CLIPS)
    rows = dataset_floors(teacher, measure, held, "unseen", 4, small=5)
    real, real_small, rebuilt, rebuilt_small, shuffled = rows
    assert [row["method"] for row in rows[1:4]] == ["Real images", "VAE reconstruction", "VAE reconstruction"]
    assert [row["dataset"] for row in (real, real_small, rebuilt_small)] == ["unseen", "unseen-small", "unseen-small"]
    assert [row["images"] for row in rows] == [9, 5, 9, 5, 9]
    assert (real["fid"] is None) == (real_small["recall"] is None) == (not independent)
    assert rebuilt["fid"] > 0 and real["clip_score"] > 0 and shuffled["fid"] is None


def test_a_clip_score_is_named_after_its_model(params):
    def named(**update):
        evaluation = params.evaluation.model_copy(update=update)
        return evaluate.clip_names(params.model_copy(update={"evaluation": evaluation}))

    assert named() == {"clip_score": "CLIP score (tiny, in-domain)"}
    two = {"clip": "ViT-g-14/laion2b_s12b_b42k", "clip_beside": "ViT-L-14/openai"}
    assert named(**two, clip_prefix="A photo depicts ") == {
        "clip_score": "CLIP score (ViT-g-14/laion2b_s12b_b42k, 'A photo depicts' before captions)",
        "clip_score_beside": "CLIP score (ViT-L-14/openai, 'A photo depicts' before captions)",
    }


class OtherClip(Clip):
    """A model that sees another number in an image."""

    def image_features(self, images):
        return super().image_features(255 - images)


def test_a_second_clip_score_stands_beside_the_first(stand_ins, teacher, tmp_path):
    clips = CLIPS | {"clip_score_beside": OtherClip()}
    made = make_references(teacher, held_out(True), clips, "inception")
    made.save(tmp_path / "a.npz")
    loaded = References.load(tmp_path / "a.npz")
    assert set(loaded.clip_text) == set(clips)
    row = Measure.against(loaded, extract, clips)(IMAGES[:9])(9)
    first = Measure.against(loaded, extract, CLIPS)(IMAGES[:9])(9)
    assert row["clip_score"] == first["clip_score"] != row["clip_score_beside"]
    assert "clip_score_beside" not in first
    shuffled = dataset_floors(teacher, Measure.against(loaded, extract, clips), held_out(True), "unseen", 4)[-1]
    assert shuffled["clip_score_beside"] > 0
    without = make_references(teacher, held_out(True), CLIPS, "inception")
    with pytest.raises(ValueError, match="a-set have no clip_score_beside: run the references stage again"):
        Measure.against(without, extract, clips)


@pytest.mark.parametrize(
    ("system", "datasets"),
    [
        ("lcm-w3-k20-s0", {"unseen", "seen"}),
        ("baselines-w3", {"unseen", "unseen-small"}),
        ("pipeline-other", {"unseen"}),
    ],
)
def test_a_system_is_measured_on_its_own_datasets(system, datasets, tmp_path):
    params = Params.model_validate(compose("smoke", overrides=with_pipeline("x")))
    assert evaluate.job_of(params, system, tmp_path)[0] == datasets


def test_another_teacher_has_a_card_without_rows(params, teacher):
    other = params.model_copy(update={"teacher": params.teacher.model_copy(update={"source": "someone/sd"})})
    card = evaluate.teacher_card(other, teacher)
    assert card["rows"] == [] and card["protocol"]["teacher"] == "someone/sd"
    assert list(card["protocol"]["unet"]) == ["diffusion_pytorch_model.safetensors"]


def test_the_card_draws_nothing_twice_and_sets_seen_beside_unseen(params):
    card = params.world.card
    draws = evaluate.card_draws(card)
    assert len(set(draws)) == len(draws)
    most = max(card.steps)
    curve = {w for dataset, sampler, w, steps in draws if (dataset, sampler, steps) == ("unseen", "ddim", most)}
    assert curve == {1, 2, 3, 5, 8}
    assert [d for d in draws if d[0] == "seen"] == [("seen", "ddim", card.main_scale, most)]


def test_the_worlds_card_has_both_sets_their_floors_and_pictures(params, teacher, stand_ins, tmp_path, monkeypatch):
    update = {"images": 9, "samplers": ["ddim"], "guidance_scales": [3], "steps": [1, 2], "curve_scales": [1, 3]}
    card = params.world.card.model_copy(update={**update, "pictures": 4})
    params = params.model_copy(update={"world": params.world.model_copy(update={"card": card})})
    monkeypatch.setattr(evaluate, "assemble_tiny", lambda folder, tokens, models: None)
    monkeypatch.setattr(evaluate, "load_teacher", lambda folder, bf16: teacher)
    monkeypatch.setattr(evaluate, "emoji_set", lambda folder, dataset, count: held_out(True))
    monkeypatch.setattr(evaluate, "file_hash", lambda path: path.name)
    made, pictures = evaluate.world_card(params, tmp_path, tmp_path, tmp_path)
    rows = [(row["dataset"], row["guidance_scale"], row["steps"]) for row in made["rows"]]
    assert rows == [("unseen", 3, 1), ("unseen", 3, 2), ("unseen", 1, 2), ("seen", 3, 2)]
    assert all(row["fid"] > 0 and row["clip_score"] is not None and row["images"] == 9 for row in made["rows"])
    assert pictures.shape == (4, 32, 32, 3) and pictures.dtype == np.uint8
    floors = {(row["dataset"], row["method"]) for row in made["floors"]}
    assert floors >= {("unseen", "Real images"), ("seen", "Real images"), ("seen", "VAE reconstruction")}
    assert made["protocol"]["set"] == "a-set" and set(made["protocol"]["datasets"]) == {"unseen", "seen"}


def test_no_guidance_asks_the_network_for_captions_alone(params, teacher, monkeypatch):
    captions = teacher.embed(["a", "b"])

    def draw(guidance_scale):
        return evaluate.draw_baseline(teacher, captions, "ddim", guidance_scale, 2, params, "x")

    near = draw(1 + 1e-9)
    monkeypatch.setattr(evaluate, "guided_outputs", None)  # a call would fail
    assert np.abs(draw(1.0).astype(int) - near).max() <= 1


@pytest.fixture
def built(stand_ins, teacher, teacher_folder, tmp_path):
    """A build folder with a teacher and the references of the unseen set."""
    (tmp_path / "build").mkdir()
    (tmp_path / "build/teacher").symlink_to(teacher_folder)
    make_references(teacher, held_out(True), CLIPS, "inception").save(tmp_path / "build/references/unseen.npz")
    return tmp_path / "build"


def with_pipeline(source) -> list[str]:
    row = {"name": "InstaFlow-0.9B", "source": str(source), "scheduler": "LCMScheduler", "steps": [1]}
    return ["evaluation.batch_size=4", f"evaluation.pipelines={json.dumps({'other': row | {'guidance_scale': 1}})}"]


def test_any_pipeline_is_measured_by_the_same_prompts_and_seeds(built, teacher_folder):
    params = Params.model_validate(compose("smoke", overrides=with_pipeline(teacher_folder)))
    assert params.matrix.others[-1] == params.matrix.systems[-1] == "pipeline-other"
    (row,) = evaluate.evaluate_system(params, "pipeline-other", built)["rows"]
    assert (row["system"], row["method"], row["steps"], row["images"]) == ("pipeline-other", "InstaFlow-0.9B", 1, 9)
    assert row["fid"] > 0 and row["paired_distance"] is None and row["guidance_scale"] == 1


def test_the_undistilled_network_is_measured_beside_the_teacher_and_against_it(built, params, teacher, tmp_path):
    captions = prompt_embeddings(teacher, References.load(built / "references/unseen.npz"))
    drawn = evaluate.draw_consistency(teacher, teacher.unet, captions, None, 2, params, "x", 48)
    (built / "teacher_samples").mkdir()
    np.save(built / "teacher_samples/w3.npy", drawn)  # as if the teacher drew the same
    sizes = {"small_images": 5, "curve_images": 4, "steps": [1, 2], "curve_steps": 2, "baselines": {}}
    params = params.model_copy(update={"evaluation": params.evaluation.model_copy(update=sizes)})
    bench = evaluate.Bench.load(params, built, ["unseen"])
    rows = evaluate.evaluate_baselines(bench, 3)
    start = [r for r in rows if r["method"] == "Undistilled"]
    assert [(r["dataset"], r["steps"], r["images"], r["iteration"]) for r in start] == [
        ("unseen", 1, 9, None), ("unseen-small", 1, 5, None),
        ("unseen", 2, 9, None), ("unseen-small", 2, 5, None), ("unseen-curve", 2, 4, 0),
    ]  # fmt: skip
    far, near = [r for r in start if r["dataset"] == "unseen"]
    assert near["paired_distance"] == 0 and near["fid_teacher"] == pytest.approx(0, abs=1e-6)
    assert far["fid_teacher"] > 1
    own = next(r for r in rows if r["method"] == "Teacher")
    assert own["fid_teacher"] == pytest.approx(0, abs=1e-6) and own["fid"] == pytest.approx(near["fid"])


def test_command_line_writes_rows_and_names_what_is_wrong(built, teacher_folder, tmp_path, capsys):
    arguments = ["--profile", "smoke", "--build", str(built)]
    override = ["--set", *with_pipeline(teacher_folder)]
    assert evaluate.main(["pipeline-other", *arguments, "--out", str(tmp_path / "a/b.json"), *override]) == 0
    assert json.loads((tmp_path / "a/b.json").read_text())["protocol"]["set"] == "a-set"
    assert evaluate.main(["pipeline-none", *arguments]) == 1
    assert "system 'pipeline-none' is not in params.yaml; there are: " in capsys.readouterr().err
    assert evaluate.main(["lcm-w3-k20-s0", "--profile", "smoke", "--build", str(tmp_path / "none")]) == 1
    assert "run the teacher stage first" in capsys.readouterr().err
