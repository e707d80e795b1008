"""The profiles at Stable Diffusion's size: valid, and what the paper's tables need of them is there."""

import re
from pathlib import Path

import pytest

from splam.params import CONF, Params, ParamsError, compose, resolve

PROFILES = ("sd15-w3", "sd15-w8", "sd21-w8")


def profile(name: str, *overrides: str) -> Params:
    return Params.model_validate(compose(name, overrides=overrides))


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_is_valid_and_holds_the_published_hyperparameters(name):
    params = profile(name)
    assert (params.trajectories.solver_skip, params.data.resolution, params.evaluation.teacher_steps) == (20, 512, 50)
    for run in params.matrix.runs:
        training = resolve(params, run).training
        published = dict(learning_rate=8e-6, warmup=500, weight_decay=0.0, gradient_norm=1.0, ema_decay=0.95)
        published |= dict(loss="huber", huber_c=1e-3, batch_size=12, source="online", short_ends="clamped")
        assert {key: getattr(training, key) for key in published} == published
        assert 900 < training.global_batch < 1100
    evaluation = params.evaluation
    assert (evaluation.features, evaluation.images, evaluation.small_images) == ("inception", 30000, 5000)
    assert (evaluation.clip, evaluation.clip_prefix) == ("ViT-g-14/laion2b_s12b_b42k", "A photo depicts ")
    assert evaluation.clip_beside == "ViT-L-14/openai"


@pytest.mark.parametrize(("name", "teacher"), [("sd15-w3", "v1-5"), ("sd15-w8", "v1-5"), ("sd21-w8", "2-1-base")])
def test_a_profile_names_its_teacher_on_the_hub(name, teacher):
    assert profile(name).teacher.source.endswith(f"/stable-diffusion-{teacher}")


def runs_of(params: Params, method: str, w: float, k: int, me: bool) -> list[str]:
    wanted = (method, w, k, me)
    found = params.runs.items()
    return [n for n, r in found if (r.method, r.guidance_scale, r.skip, r.multiple_estimation) == wanted]


@pytest.mark.parametrize(("name", "w"), [("sd15-w3", 3), ("sd15-w8", 8)])
def test_table_2_has_its_runs_and_baselines(name, w):
    params = profile(name)
    assert len(runs_of(params, "splam", w, 100, True)) == 2  # the paper's input, and the scaled one
    (lcm,) = runs_of(params, "lcm", w, 20, False)
    assert resolve(params, f"{lcm}-s0").training.iterations >= 10_000
    assert all(
        2000 <= resolve(params, f"{n}-s0").training.iterations <= 6000 for n in runs_of(params, "splam", w, 100, True)
    )
    assert {"dpmsolver++", "unipc"} <= params.evaluation.baselines.keys()
    assert params.evaluation.gate.guidance_scale == w


def test_figures_2_and_3_have_their_runs():
    params = profile("sd15-w3")
    assert runs_of(params, "splam", 3, 100, False) and runs_of(params, "lcm", 3, 100, False)
    assert all(runs_of(params, "splam", w, 100, True) for w in (3, 5, 8, 12))
    curves = [n for n, r in params.runs.items() if "snapshots" in r.training]
    assert set(curves) == {"lcm-w3-k20", "splam-raw-w3-k20", "splam-raw-w3-k100-me"}


def test_table_1_measures_both_sets():
    params = profile("sd21-w8")
    for method in ("splam", "lcm", "lcm_star"):
        assert all({"unseen", "seen"} <= set(r.datasets) for r in params.runs.values() if r.method == method)
    assert all({"unseen", "seen"} <= set(b.datasets) for b in params.evaluation.baselines.values())
    assert params.evaluation.gate is None


def test_what_they_share_is_no_profile():
    with pytest.raises(ParamsError, match="teacher: missing"):
        compose("sd")


@pytest.mark.parametrize("name", ("sd", *PROFILES))
def test_every_hyperparameter_of_training_says_where_it_is_from(name):
    text = (CONF / f"{name}.yaml").read_text()
    section = re.search(r"^training:\n((?:  .*\n)+)", text, re.MULTILINE)
    settled = {"source", "checkpoint_seconds", "keep_checkpoints"}  # of no consequence for a result
    lines = re.findall(r"^  (\w+): (.*)$", section[1], re.MULTILINE) if section else []
    assert [key for key, rest in lines if key not in settled and not re.search("paper, |assumed", rest)] == []


def test_the_profiles_of_the_documentation_compose(tmp_path):
    table, latents = re.findall(r"```yaml\n(.*?)```", Path("docs/stable-diffusion.md").read_text(), re.DOTALL)
    for path in CONF.glob("*.yaml"):
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "table2a.yaml").write_text(table)
    (tmp_path / "latents.yaml").write_text(f"extends: sd15-w3\n{latents}")
    params = Params.model_validate(compose("table2a", tmp_path))
    assert set(params.runs) == {"splam-raw-w3-k100-me", "lcm-w3-k20", "lcm-lora-w3-k20"}
    params = Params.model_validate(compose("latents", tmp_path))
    assert params.matrix.latents == ["laion"] and params.latents.batches * 64 == params.latents.images == 5_000_000


def test_the_rehearsal_has_each_way_of_training():
    params = profile("rehearsal")
    runs = [resolve(params, name) for name in params.matrix.runs]
    ways = [(one.training.source, one.training.processes) for one in runs]
    assert set(ways) == {("latents", 2), ("online", 2), ("online", 1)} and ways.count(("online", 1)) == 2
    assert params.latents.images < 0.65 * 72  # what the stand-ins' shards hold to train on
