"""Runs whose metrics are there are not made again; whatever their numbers follow from brings them back."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from splam import finished
from splam.params import Params, compose, run_key, write_params

RUN, OPENED = "lcm-star-w8-k20-s0", "splam-w3-k20-s0"  # pictures, delta and latency open every other run of smoke
REUSE = "reuse_metrics=true"


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A repository of three files that stages of dvc.yaml declare."""
    stages = {name: {"deps": ["notebooks/a.ipynb", "build/teacher"]} for name in finished.STAGES}
    stages["distill"]["deps"] += ["splam/loss.py", "splam/table.csv"]
    stages["evaluate"]["deps"] += ["models/tiny/clip"]
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    files = {
        "splam/loss.py": 'def f(x):\n    """Words."""\n    return x\n',
        "splam/table.csv": "a",
        "splam/plan.py": "",
    }
    for name, text in (files | {"models/tiny/clip/weights": "1", "notebooks/a.ipynb": "{}"}).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(finished, "ROOT", tmp_path)
    finished.method_digest.cache_clear()
    yield tmp_path
    finished.method_digest.cache_clear()


def key(*overrides: str, run: str = RUN) -> str:
    finished.method_digest.cache_clear()
    return run_key(Params.model_validate(compose("smoke", overrides=overrides)), run)


def measured(root: Path, run: str, stages=("distill", "evaluate"), **changes) -> None:
    """A run's metrics, as its stages write them."""
    for stage in stages:
        path = root / f"reports/smoke/metrics/{stage}/{run}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"key": key(run=run), "rows": []} | changes))


def left(*overrides: str) -> list[str]:
    finished.method_digest.cache_clear()
    return compose("smoke", overrides=[REUSE, *overrides])["matrix"]["runs"]


def test_a_finished_run_is_left_out_where_the_profile_says_so(root):
    everything = left()
    assert RUN in everything and len(everything) == 5
    measured(root, RUN)
    assert left() == [run for run in everything if run != RUN]
    assert compose("smoke")["matrix"]["runs"] == everything
    systems = compose("smoke", overrides=[REUSE])
    assert RUN in systems["systems"] and RUN in systems["matrix"]["systems"]


@pytest.mark.parametrize("stages", [("distill",), ("evaluate",)])
def test_half_of_a_runs_metrics_are_not_enough(root, stages):
    measured(root, RUN, stages)
    assert RUN in left()


def test_metrics_of_another_key_without_one_or_half_written_are_not_enough(root):
    for changes in ({"key": "0123"}, {"key": None}):
        measured(root, RUN, **changes)
        assert RUN in left()
    measured(root, RUN)
    (root / f"reports/smoke/metrics/evaluate/{RUN}.json").write_text('{"key": "01')
    assert RUN in left()


def test_a_run_whose_weights_are_opened_is_made_in_any_case(root):
    measured(root, OPENED)
    assert OPENED in left()


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("training.learning_rate=0.1", False),
        ("runs.lcm-star-w8-k20.training.iterations=6", False),
        ("trajectories.draws=100", False),
        ("evaluation.images=50", False),
        ("data.every=5", False),
        ("seed=1", False),
        ("runs.splam-w3-k20.training.iterations=6", True),  # another run's
        ("trajectories.second_order=[3]", True),
        ("evaluation.baselines.ddim.steps=[1]", True),
        ("training.checkpoint_seconds=99", True),
        ("pictures.prompts=[a]", True),
    ],
)
def test_the_key_follows_what_the_numbers_follow_from(root, override, same):
    assert (key(override) == key()) == same
    assert key() != key(run=OPENED)


@pytest.mark.parametrize(
    ("name", "text", "same"),
    [
        ("splam/loss.py", 'def f(x):\n    """Other words."""\n\n    return (x)  # a comment\n', True),
        ("splam/loss.py", 'def f(x):\n    """Words."""\n    return -x\n', False),
        ("splam/table.csv", "b", False),
        ("models/tiny/clip/weights", "2", False),
        ("splam/plan.py", "x = 1", True),  # no stage of the method's
        ("notebooks/a.ipynb", "{ }", True),
    ],
)
def test_the_key_follows_the_code_and_the_weights(root, name, text, same):
    before = key()
    (root / name).write_text(text)
    assert (key() == before) == same


def test_the_key_is_the_same_in_a_stage_and_in_another_clone(root, tmp_path_factory, monkeypatch):
    write_params("smoke", overrides=[REUSE], out=root / "params.yaml")
    loaded = Params.model_validate(yaml.safe_load((root / "params.yaml").read_text()))
    first = run_key(loaded, RUN)
    clone = tmp_path_factory.mktemp("clone") / "repository"
    shutil.copytree(root, clone)
    monkeypatch.setattr(finished, "ROOT", clone)
    assert key() == first


def test_the_repositorys_own_stages_declare_the_method():
    stages = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
    assert set(finished.STAGES) <= set(stages)
    assert list(stages).index("evaluate") < list(stages).index("distill")  # DVC's order: runs are finished one by one
    declared = {name for stage in finished.STAGES for name in stages[stage]["deps"]}
    assert {"splam/loss.py", "splam/train.py", "splam/trajectories.py", "splam/metrics.py"} <= declared
    assert {f"models/tiny/{part}" for part in ("vae", "unet", "clip")} <= declared
