"""dvc.yaml as DVC reads it, for a profile that has latents encoded and for one that has not."""

import shutil
from pathlib import Path

import pytest
from dvc.repo import Repo

from splam.params import LATENTS, NO_LATENTS, write_params

ROOT = Path(__file__).resolve().parents[1]


def stages(profile: str, folder: Path) -> dict:
    """Stages by name, of a profile composed into a repository of its own."""
    shutil.copy(ROOT / "dvc.yaml", folder)
    write_params(profile, ROOT / "conf/profile", out=folder / "params.yaml")
    with Repo.init(str(folder), no_scm=True) as repo:
        return {stage.name: stage for stage in repo.index.stages}


def paths(stage) -> set[str]:
    return {dep.def_path for dep in stage.deps}


@pytest.fixture(scope="module", params=["smoke", "rehearsal"])
def graph(request, tmp_path_factory):
    return request.param, stages(request.param, tmp_path_factory.mktemp(request.param))


def test_latents_are_a_stage_only_where_a_run_reads_them(graph):
    profile, found = graph
    read = profile == "rehearsal"
    assert [name for name in found if name.startswith("latents")] == (["latents@laion"] if read else [])
    distillations = [stage for name, stage in found.items() if name.startswith("distill@")]
    assert distillations
    for stage in distillations:
        assert paths(stage) & {LATENTS, NO_LATENTS} == {LATENTS if read else NO_LATENTS}


def test_every_file_of_the_repository_that_a_stage_names_is_there(graph):
    named = {path for stage in graph[1].values() for path in paths(stage) if path.startswith(("splam/", "notebooks/"))}
    assert [path for path in sorted(named) if not (ROOT / path).is_file()] == []


def test_every_parameter_that_a_stage_names_has_a_value(graph):
    for name, stage in graph[1].items():
        for dep in stage.deps:
            assert not getattr(dep, "params", None) or not set(dep.params) - set(dep.read_params()), name


@pytest.mark.parametrize("stage", ["baselines@baselines-w3", "sample"])
def test_the_gate_is_of_no_concern_to_what_draws_images(graph, stage):
    keys = {key for dep in graph[1][stage].deps for key in getattr(dep, "params", [])}
    assert "evaluation.baselines" in keys and not keys & {"evaluation", "evaluation.gate"}
