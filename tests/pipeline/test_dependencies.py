"""Stages declare what they depend on: all the code that they reach, and parameters that are there."""

import os
import re

import pytest
import yaml
from dvc.repo import Repo

from splam.config import ROOT, load_params
from splam.profile import compose
from tests.closure import closure, room, source_of

CI = (ROOT / ".ci/run").read_text()


@pytest.fixture(scope="module", params=["smoke", "rehearsal", "rehearsal-night"])
def stages(request, tmp_path_factory) -> dict:
    """The stages of dvc.yaml by name, of one profile."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    (folder / "params.yaml").write_text(yaml.safe_dump(compose(request.param)))
    with Repo.init(str(folder), no_scm=True) as repo:
        return {stage.name: stage for stage in repo.index.stages}


def paths(stage) -> set[str]:
    return {dep.def_path for dep in stage.deps if not hasattr(dep, "params")}


def entry(stage):
    """The notebook that a stage runs, or the package that it calls by `python -m`."""
    if notebook := re.search(r"notebooks/\w+\.ipynb", stage.cmd):
        return ROOT / notebook[0]
    return ROOT.joinpath(*re.search(r"-m ([\w.]+)", stage.cmd)[1].split("."), "__main__.py")


def test_a_stage_declares_the_code_that_it_reaches(stages):
    """All but splam/stage.py, which runs the notebooks and is no part of a result."""
    for name, stage in stages.items():
        own = entry(stage) if entry(stage).suffix == ".ipynb" else entry(stage).parent
        reached = {room(module) for module in closure(entry(stage))} | {str(own.relative_to(ROOT))}
        declared = {path for path in paths(stage) if path.startswith(("splam", "notebooks"))}
        assert declared - {"splam/data/shapes.py"} == reached - {"splam/stage.py"}, name  # tiny's `inputs`


def test_every_notebook_is_run_by_ci():
    """As a stage, or by name; but for the hours that the shipped models are trained in (models/tiny)."""
    run = (ROOT / "dvc.yaml").read_text() + CI
    for path in [*ROOT.glob("notebooks/**/[!.]*.ipynb"), *ROOT.glob("evidence/*.ipynb")]:
        assert os.path.relpath(path, ROOT) in run


def test_the_evidence_declares_the_code_that_it_reaches():
    pipeline = yaml.safe_load((ROOT / "evidence/dvc.yaml").read_text())
    for stage in pipeline["stages"].values():
        notebooks = re.findall(r"splam\.stage (\S+)", str(stage["cmd"]))
        reached = {room(module) for path in notebooks for module in closure(ROOT / path)}
        assert {path for path in stage["deps"] if path.startswith(("splam", "note", "evid"))} == reached | {*notebooks}
    runs, named = load_params(ROOT / "evidence/params.yaml").runs, pipeline["vars"][0]
    assert sorted(named["five"] + named["three"] + named["tuning"]) == sorted(runs)


def test_a_stage_names_the_sections_that_its_notebook_reads(stages):
    sections = compose("smoke").keys()
    for name, stage in stages.items():
        if name != "report" and entry(stage).suffix == ".ipynb":
            named = {key.split(".")[0] for dep in stage.deps for key in getattr(dep, "params", [])}
            read = set(re.findall(r"\bparams\.(\w+)", source_of(entry(stage)))) & sections
            # A caption that 30_distill draws on the way is no result.
            assert read - {"pictures"} <= named | {"profile"}, name
