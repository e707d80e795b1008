"""How a report was made: the commit, the machine, and the pipeline's stages as DVC knows them, with their times."""

import json
import os
import platform
import subprocess
from graphlib import TopologicalSorter
from pathlib import Path

import networkx as nx
import torch
from dvc.repo import Repo

from splam.config import ROOT


def commit() -> str:
    """The commit of this checkout; empty outside a git repository."""
    return subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()


def machine() -> str:
    """'Linux x86_64, 8 cores, NVIDIA H100; torch 2.9.0'."""
    gpu = [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    kind = f"{platform.system()} {platform.machine()}"
    return f"{', '.join([kind, f'{os.cpu_count()} cores', *gpu])}; torch {torch.__version__}"


def stages(pipeline: str) -> list[dict[str, object]]:
    """The stages of a dvc.yaml, and of what lies beside it, in an order in which they can run.

    Those of one `foreach` or `matrix` are one. Each has its name, what it does, the number of runs, their seconds
    (None if one is unknown), and `after`: the places in the list of what it waits for, without what these wait for.
    """
    with Repo(str(ROOT)) as repo:
        whole = repo.index.graph
    ours = [stage for stage in whole if Path(stage.path).parent == (ROOT / pipeline).parent]
    names = {stage: stage.addressing.rpartition(":")[2].partition("@")[0] for stage in ours}
    graph = nx.relabel_nodes(whole.subgraph(ours), names)
    order = [*TopologicalSorter({name: sorted(graph[name]) for name in sorted(graph)}).static_order()]
    nearest, found = nx.transitive_reduction(graph), []
    for name in order:
        members = [stage for stage, own in names.items() if own == name]
        facts = {"name": name, "text": members[0].desc or "", "runs": len(members)}
        facts |= {"seconds": _seconds(members), "after": sorted(map(order.index, nearest[name]))}
        found.append(facts)
    return found


def _seconds(stages: list) -> float | None:
    """What the notebooks of some stages took together, by splam.stage's records."""
    notebooks = [Path(out.def_path).stem for stage in stages for out in stage.outs if "executed" in out.def_path]
    files = [ROOT / f"build/times/{notebook}.json" for notebook in notebooks]
    if not files or not all(file.is_file() for file in files):
        return None
    return sum(json.loads(file.read_text())["seconds"] for file in files)
