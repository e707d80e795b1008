"""Things timed in turn in one process, their ratios, and what a ratio must be quoted with."""

import ctypes
import gc
import re
import statistics
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pandas as pd
import torch

from splam.config import ROOT, Params, parse
from splam.networks.teacher import Teacher, assemble_tiny, load_teacher
from splam.profile import compose
from splam.report.made import commit, machine

FOLDER, SCRATCH = ROOT / "benchmarks", ROOT / "build/benchmarks"
CAPTION = "a striped white star on a blue background"
CPU = not torch.cuda.is_available()
Row = dict[str, Any]
Cases = dict[Any, Callable[[], object]]
Seconds = dict[Any, list[float]]  # of every case, one entry a round


def clock() -> float:
    """CPU seconds of all threads of this process, which other processes hardly change; with a GPU, wall time."""
    if CPU:
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def in_turn(cases: Cases, rounds: int) -> Seconds:
    """Seconds of every case; a round calls each once, every other round in reverse, and the first is not counted."""
    seconds: Seconds = {name: [] for name in cases}
    for i in range(rounds + 1):
        for name in list(cases)[:: 1 if i % 2 else -1]:
            gc.collect()
            start = clock()
            cases[name]()
            seconds[name] += [clock() - start] if i else []
    return seconds


def ratio(what: str, over: Sequence[float], under: Sequence[float], aim: str = "", **facts: Any) -> Row:
    """One row of a table: median and quartiles of the rounds' ratios."""
    return spread(what, [a / b for a, b in zip(over, under, strict=True)], aim, **facts)


def spread(what: str, values: Sequence[float], aim: str = "", **facts: Any) -> Row:
    """One row of a table: median and quartiles of some values, one a round; aim: '>= 2', '<= 1.1' or none."""
    low, middle, high = (round(value, 3) for value in statistics.quantiles(values, n=4, method="inclusive"))
    met = aim and {">=": middle >= float(aim[3:]), "<=": middle <= float(aim[3:])}[aim[:2]]
    numbers = {"median": middle, "q1": low, "q3": high, "rounds": len(values)}
    return {"what": what, **numbers, "aim": aim, "met": {True: "yes", False: "no"}.get(met, ""), **facts}


def peak_megabytes(case: Callable[[], object]) -> int | None:
    """The most that a call adds to the memory in use; None on a CPU without Linux."""
    gc.collect()
    if CPU and not Path("/proc/self/clear_refs").exists():
        return None
    if CPU:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM, the largest resident size, starts anew
    else:
        torch.cuda.reset_peak_memory_stats()
    before = _resident("VmRSS") if CPU else torch.cuda.memory_allocated()
    case()
    return round(((_resident("VmHWM") if CPU else torch.cuda.max_memory_allocated()) - before) / 1e6)


def _resident(key: str) -> int:
    return 1024 * int(re.search(rf"{key}:\s*(\d+)", Path("/proc/self/status").read_text())[1])


@cache
def provenance() -> Row:
    """What every row of a CSV carries besides: how it was timed, on what, by which code."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = re.findall(r"^model name\s*: (.*)", info, re.MULTILINE)[:1]
    timed = f"CPU time, {torch.get_num_threads()} thread" if CPU else "wall time"
    what = ", ".join([f"{machine()}, diffusers {diffusers.__version__}", *models])
    return {"timed": timed, "machine": what, "commit": commit()[:10]}


def write(name: str, rows: Sequence[Row], folder: Path = FOLDER) -> None:
    """folder/NAME.csv."""
    table = pd.DataFrame([provenance() | row for row in rows])
    table[[*rows[0], *(key for key in table if key not in rows[0])]].to_csv(folder / f"{name}.csv", index=False)
    print(table.drop(columns=[*provenance()]).to_string(index=False), flush=True)


@cache
def tiny_teacher() -> Teacher:
    """The shipped tiny models, as the teacher stage assembles them."""
    if not (SCRATCH / "teacher/model_index.json").is_file():
        assemble_tiny(SCRATCH / "teacher")
    return load_teacher(SCRATCH / "teacher")


def tiny_params(*overrides: str) -> Params:
    """The profile tiny, changed."""
    return parse(compose("tiny", overrides), "tiny")
