"""Runs that need not be made again: their metrics are there, from the same code, weights and parameters.

metrics/distill/RUN.json and metrics/evaluate/RUN.json each carry the run's key: digits of all that its numbers follow
from and that is in git, which is what the stages up to its evaluation declare in dvc.yaml of splam/ and models/, and
the run's parameters. So it is the same on every machine, where hashes of trajectories and trained weights would differ
by rounding. A profile with `reuse_metrics` leaves such runs out of its matrix (splam.params.compose): DVC has no stage
for them any more, and the report reads their committed files beside the new ones. Versions of packages are not in the
key: they move numbers as another machine does.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("data-build", "teacher", "trajectories", "references", "teacher-samples", "distill", "evaluate")
WHOLE = ("seed", "data", "teacher", "inventory")  # sections of params.yaml that every run depends on
OTHERS = {
    "trajectories": {"guidance_scales", "second_order"},  # what other runs ask for
    "evaluation": {"baselines", "pipelines", "gate"},
}


def run_key(content: Mapping[str, Any], run: str) -> str:
    """16 hexadecimal digits of what a run's numbers follow from; content: params.yaml's, run: with its seed."""
    facts: dict[str, Any] = {section: content[section] for section in WHOLE}
    facts |= {section: {k: v for k, v in content[section].items() if k not in left} for section, left in OTHERS.items()}
    facts |= {"text_tokens": content["world"]["text_tokens"], "run": content["systems"][run]}
    text = json.dumps([method_digest(ROOT), run, facts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_finished(content: Mapping[str, Any], run: str) -> bool:
    """Whether both of a run's metrics files are there and carry its key."""
    folder = ROOT / "reports" / content["profile"] / "metrics"
    key = run_key(content, run)
    return all(_saved_key(folder / stage / f"{run}.json") == key for stage in ("distill", "evaluate"))


def _saved_key(path: Path) -> str | None:
    """The key that a metrics file carries; none where there is no such file, or a killed stage left half of it."""
    try:
        return json.loads(path.read_text()).get("key")
    except (FileNotFoundError, ValueError):
        return None


@cache
def method_digest(root: Path) -> str:
    """sha256 over names and contents of the code and weights that STAGES declare in root/dvc.yaml."""
    stages = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]
    declared = {
        root / name for stage in STAGES for name in stages[stage]["deps"] if name.startswith(("splam/", "models/"))
    }
    files = {file for path in declared for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()}
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0" + _meaning(file) + b"\0")
    return digest.hexdigest()


def _meaning(file: Path) -> bytes:
    """A file's bytes; of a Python file what is run, so that comments, docstrings and layout can be mended."""
    if file.suffix != ".py":
        return hashlib.sha256(file.read_bytes()).digest()
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node, clean=False) is not None:
            node.body[0] = ast.Pass()
    return ast.dump(tree).encode()
