"""Things timed in turn in one process, their ratios, and what a ratio must be quoted with."""

import ctypes
import gc
import re
import resource
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pandas as pd
import torch

from splam.config import ROOT, Params, parse
from splam.networks.teacher import Teacher, assemble_teacher, load_teacher
from splam.profile import compose
from splam.report.made import commit, machine

FOLDER, SCRATCH = ROOT / "benchmarks", ROOT / "build/benchmarks"
CAPTION = "a striped white star on a blue background"
CPU = not torch.cuda.is_available()
MODEL = re.findall(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[:1]
Row = dict[str, Any]
Cases = dict[Any, Callable[[], object]]
PROVENANCE: Row = {  # what every row of a CSV carries besides: how it was timed, on what, by which code
    "timed": f"CPU time, {torch.get_num_threads()} thread" if CPU else "wall time",
    "machine": ", ".join([machine(), f"diffusers {diffusers.__version__}", *MODEL]),
    "commit": commit()[:10],
}


def cpu_clock() -> float:
    """CPU seconds of all threads of this process, which other processes hardly change; with a GPU, wall time."""
    if CPU:
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def in_turn(cases: Cases, rounds: int, clock: Callable[[], float] = cpu_clock) -> pd.DataFrame:
    """Seconds of every case; a round calls each once, every other round in reverse, and the first is not counted."""
    seconds: dict[Any, list[float]] = {name: [] for name in cases}
    gc.freeze()  # or each collection searches all that the libraries hold, for longer than a step
    for i in range(rounds + 1):
        for name in list(cases)[:: 1 if i % 2 else -1]:
            gc.collect()
            start = clock()
            cases[name]()
            seconds[name].append(clock() - start)
    return pd.DataFrame(seconds)[1:]


def spread(what: str, values: Sequence[float] | pd.Series, aim: str = "", **facts: Any) -> Row:
    """One row of a table: median and quartiles of some ratios, one a round; aim: '>= 2', '<= 1.1' or none."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75]).round(3)
    met = aim and ("yes" if pd.eval(f"{middle} {aim}") else "no")
    numbers = {"what": what, "median": middle, "q1": low, "q3": high, "rounds": len(values), "aim": aim, "met": met}
    return numbers | facts


def peak_megabytes(case: Callable[[], object]) -> int:
    """The most that a call adds to the memory in use: on a GPU as torch counts it, on a CPU as Linux does."""
    gc.collect()
    torch.accelerator.reset_peak_memory_stats()
    if CPU:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the largest resident size starts anew
    before = _highest()
    case()
    return round((_highest() - before) / 1e6)


def _highest() -> int:
    """Bytes in use at most, since this was last reset."""
    return torch.accelerator.max_memory_allocated() or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def write(name: str, rows: Sequence[Row], folder: Path = FOLDER) -> None:
    """folder/NAME.csv."""
    table = pd.DataFrame([row | PROVENANCE | row for row in rows]).round(4)  # in this order
    table.to_csv(folder / f"{name}.csv", index=False)
    print(table.drop(columns=[*PROVENANCE]).to_string(index=False), flush=True)


@cache
def tiny_teacher() -> Teacher:
    """The shipped tiny models, as the teacher stage assembles them."""
    if not (SCRATCH / "teacher/model_index.json").is_file():
        assemble_teacher("tiny", SCRATCH / "teacher")
    return load_teacher(SCRATCH / "teacher")


@cache
def profile(name: str, *overrides: str) -> Params:
    """A profile, changed."""
    return parse(compose(name, overrides), name)
