"""The evidence's runs in two clones: what one machine has finished is up to date on every other."""

import json

import pytest
import yaml

from splam.config import ROOT
from tests.pipeline.conftest import Repository

PIPELINE = "evidence/dvc.yaml"
# What a run would write, of any length.
FAKE_RUN = """
import pathlib, sys

name = "{}-s{}".format(*(word.partition("=")[2] for word in sys.argv[2:4]))
for kind in ("evaluate", "delta", "errors"):
    folder = pathlib.Path("reports/evidence/metrics") / kind
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.csv").write_text("steps,fid\\n4,900.1\\n")
(folder.parent / f"evaluate/{name}.json").write_text('{"unseen": {"fid_4": 900.1}}')
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Repository:
    """A repository whose evidence was made and committed: of each stage one run, by two seeds at most."""
    repository = Repository(tmp_path_factory.mktemp("evidence"))
    repository.create(PIPELINE, "evidence/params.yaml", ".dvcignore")
    pipeline = yaml.safe_load((ROOT / PIPELINE).read_text())
    pipeline["vars"][0] |= {"five": ["lcm-w3-k20"], "three": ["lcm-w8-k100-me"], "tuning": ["tune-lcm-w3-1e-4"]}
    for made_of_them in ("students", "report"):
        del pipeline["stages"][made_of_them]
    for stage in pipeline["stages"].values():
        stage["matrix"]["seed"] = stage["matrix"]["seed"][:2]
    (repository.folder / PIPELINE).write_text(yaml.safe_dump(pipeline, sort_keys=False))
    repository.stand_ins(pipeline["stages"]["controls"]["deps"])
    (repository.folder / "splam/stage.py").write_text(FAKE_RUN)
    assert len(repository.stages(repository.dvc("repro", PIPELINE))) == 2 + 2 + 2 + 1
    repository.commit()
    return repository


@pytest.fixture
def clone(finished, tmp_path) -> Repository:
    """Of the repository, without its cache."""
    clone = Repository(tmp_path / "clone")
    finished.run("git", "clone", "-q", str(finished.folder), str(clone.folder))
    return clone


def test_nothing_is_left_to_do_in_a_clone(clone):
    assert not clone.stages(clone.dvc("repro", PIPELINE))
    assert not clone.stages(clone.dvc("repro", "--allow-missing", PIPELINE))
    assert "up to date" in clone.dvc("status", PIPELINE)
    assert clone.run("git", "status", "--porcelain") == ""


def test_another_parameter_of_one_run_runs_that_one(clone):
    path = clone.folder / "evidence/params.yaml"
    params = yaml.safe_load(path.read_text())
    params["runs"]["lcm-w3-k20"]["skip"] = 40
    path.write_text(json.dumps(params))
    changed = {f"{PIPELINE}:five-seeds@lcm-w3-k20-{seed}" for seed in (0, 1)}
    assert clone.stages(clone.dvc("repro", PIPELINE)) == changed
