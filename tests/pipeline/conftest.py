"""The project's DVC pipeline in a repository of its own, where stages write small files in place of their work."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

from splam.config import ROOT
from splam.profile import compose

# What a stage would write: of a distillation its iterations, and everything after it follows from them.
FAKE_STAGE = """
import json, os, pathlib, yaml

stage, params = os.environ["DVC_STAGE"], yaml.safe_load(open("params.yaml"))
key = stage.partition("@")[2]
run, training = pathlib.Path("build/runs", key), params["training"] | params["runs"].get(key, {}).get("training", {})
table = "iteration,loss,skip,fid,t,delta_rms,clip_score\\n1,0.5,20,900.1,119,0.1,70.0\\n"
for out in map(pathlib.Path, json.loads(pathlib.Path("outs.json").read_text())[stage]):
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.name == "figures":
        out.mkdir(exist_ok=True)
        for name in ("figure2a", "figure2b", "figure2c", "figure3b"):
            (out / f"{name}.csv").write_text(table)
    elif out.suffix == ".csv":
        out.write_text(table)
    elif out == run:
        out.write_text(str(training["iterations"]))
    elif out.parent.name == "distill":
        out.write_text(json.dumps({"iterations": training["iterations"]}))
    elif out.parent.name == "evaluate":
        out.write_text(json.dumps({"unseen": {"fid_1": 1000.5 - (int(run.read_text()) if run.is_file() else 0)}}))
    else:
        out.write_text(json.dumps({"stage": stage, "profile": params["profile"]}))
"""


# Two runs and one baseline of every profile: each stage takes DVC about a second.
FEW = [
    *(f"runs.{name}=null" for name in ("lcm-star-w8-k20", "splam-w3-k20", "lcm-lora-w3-k20")),
    *(f"baselines.{name}=null" for name in {*compose("smoke")["baselines"]} - {"ddim"}),
    *(f"{key}=[lcm-w3-k20]" for key in ("delta.runs", "pictures.guidance_runs", "pictures.gallery")),
    *("trajectories.guidance_scales=[3]", "latency.lora=lcm-w3-k20", "pictures.gallery_baselines=[]"),
    "evaluation.datasets.lcm-star-w8-k20=null",
]


class Project:
    """A git and DVC repository: the pipeline of dvc.yaml with a profile, and stand-ins for what it depends on."""

    def __init__(self, folder: Path, profile: str):
        self.folder = folder
        for name in ("dvc.yaml", "data.dvc", ".dvcignore", "Makefile"):
            shutil.copy(ROOT / name, folder / name)
        (folder / ".gitignore").write_text("/build/\n/data/\n__pycache__/\n")
        self.run("git", "init", "-q")
        self.run("git", "config", "user.name", "a")
        self.run("git", "config", "user.email", "a@b")
        self.dvc("init", "-q")
        self.dvc("config", "core.analytics", "false")
        self.compose(profile)
        (folder / "splam/stage.py").write_text(FAKE_STAGE)
        (folder / "splam/report/__main__.py").write_text(FAKE_STAGE)

    def run(self, *command: str) -> str:
        """What a command prints; it must succeed."""
        environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": ""}
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def dvc(self, *arguments: str) -> str:
        """What a DVC command prints."""
        return self.run(sys.executable, "-m", "dvc", *arguments)

    def stages(self, said: str) -> set[str]:
        """The stages that a `dvc repro` or `dvc exp run` says it ran."""
        return {line.split("'")[1] for line in said.splitlines() if line.startswith("Running stage")}

    def compose(self, profile: str) -> None:
        """Write params.yaml as splam.config does, and what the stages of this profile depend on and write."""
        content = yaml.safe_dump(compose(profile, FEW), sort_keys=False)
        (self.folder / "params.yaml").write_text(content)
        with Repo(str(self.folder)) as repo:
            stages = repo.index.stages
            outs = {getattr(stage, "name", "data.dvc"): [out.def_path for out in stage.outs] for stage in stages}
            deps = {dep.def_path for stage in stages for dep in stage.deps if not hasattr(dep, "params")}
        (self.folder / "outs.json").write_text(json.dumps(outs))
        made = re.compile("(build|data|reports)(?!/rehearsal)(/|$)")
        for path in (Path(path) for path in sorted(deps) if not made.match(path)):
            place = self.folder / path if path.suffix else self.folder / path / "__init__.py"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text("# not the real one\n")


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    """The smoke profile's pipeline, run and committed."""
    project = Project(tmp_path_factory.mktemp("project"), "smoke")
    project.dvc("repro")
    project.run("git", "add", "-A")
    project.run("git", "commit", "-q", "-m", "all")
    return project
