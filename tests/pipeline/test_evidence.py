"""The evidence in two clones: what one machine has finished is up to date on every other."""

import json

import pytest
import yaml

from splam.config import ROOT
from tests.pipeline.conftest import Repository

PIPELINE = "evidence/dvc.yaml"
# What a run would write, of any length.
FAKE_RUN = """
import os, pathlib, sys

name = "evidence/metrics/{}-s{}".format(*(word.partition("=")[2] for word in sys.argv[2:4]))
pathlib.Path(name).parent.mkdir(exist_ok=True)
pathlib.Path(name + ".json").write_text('{"unseen": {"fid_4": 900.1}}')
pathlib.Path(name + ".csv").write_text("steps,fid\\n4,900.1\\n")
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Repository:
    """A repository whose evidence was made and committed."""
    repository = Repository(tmp_path_factory.mktemp("evidence"))
    repository.create(PIPELINE, "evidence/params.yaml", ".dvcignore")
    stage = yaml.safe_load((ROOT / PIPELINE).read_text())["stages"]["run"]
    repository.stand_ins(stage["deps"])
    (repository.folder / "splam/stage.py").write_text(FAKE_RUN)
    assert len(repository.stages(repository.dvc("repro", PIPELINE))) == len(stage["matrix"]["run"])
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


def test_a_change_without_meaning_is_committed_and_nothing_runs(clone):
    (clone.folder / "splam/config.py").write_text("# another comment\n")
    assert "splam/config.py" in clone.dvc("status", PIPELINE)
    clone.dvc("commit", "-f", PIPELINE)
    assert not clone.stages(clone.dvc("repro", PIPELINE))
    assert set(clone.run("git", "diff", "--name-only").split()) == {"evidence/dvc.lock", "splam/config.py"}


def test_another_parameter_of_one_run_runs_that_one(clone):
    path = clone.folder / "evidence/params.yaml"
    params = yaml.safe_load(path.read_text())
    params["runs"]["lcm-w3-k20"]["skip"] = 40
    path.write_text(json.dumps(params))
    assert clone.stages(clone.dvc("repro", PIPELINE)) == {f"{PIPELINE}:run@lcm-w3-k20-0"}
