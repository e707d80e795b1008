"""Ablations: runs beside a reference, which usually differs in one factor, paired by seed.

params.ablations names the studies; tuning two methods with equal effort is two studies with equal runs. A run is better
or worse than its reference where the 95 % t interval of ln(FID / the reference's) lies on one side of 0.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import pandas as pd

from splam.config import Params
from splam.report.metrics import by_seed, where
from splam.report.rules import BELOW, FAILS, FID_UNIT, HOLDS, REAL, TEACHER, Part, ln_ratio

VERDICTS = {HOLDS: "better", FAILS: "worse"}
FIDS = {REAL: "fid", TEACHER: "fid_teacher"}
COLUMNS = ("study", "run", "factor", "reference", "value", "reference_value", "steps", "fid_of", "fid", "reference_fid")


def differences(params: Params, run: str, reference: str) -> dict[str, tuple[Any, Any]]:
    """The factors in which a run differs from another: {key: (its value, the other's)}, keys of Run and Training.

    Snapshots, checkpoints and names leave a student as it is and do not count.
    """
    kept = {"name", "training", "variant", "ablation", "snapshots", "checkpoint_seconds"}
    both = [params.runs[name] for name in (run, reference)]
    ours, theirs = ({**run.model_dump(), **run.training.model_dump()} for run in both)
    return {key: (ours[key], theirs[key]) for key in ours if key not in kept and ours[key] != theirs[key]}


def records(params: Params, rows: pd.DataFrame, study: str) -> Iterator[dict[str, Any]]:
    """A row for each run of a study, number of steps and FID. Raises ValueError for a run like the reference."""
    reference = params.ablations[study].reference
    for run in params.ablations[study].runs:
        changed = differences(params, run, reference)
        if not changed:
            raise ValueError(f"ablations.{study}: {run} does not differ from {reference}")
        sides = [", ".join(map(str, values)) for values in zip(*changed.values(), strict=True)]
        facts = {"study": study, "run": run, "factor": ", ".join(changed), "reference": reference}
        facts |= {"value": sides[0], "reference_value": sides[1]}
        for steps, (fid_of, column) in itertools.product(params.evaluation.steps, FIDS.items()):
            found = where(rows, dataset="unseen", final=True, steps=steps)
            both = [by_seed(where(found, run=name), column) for name in (run, reference)]
            ours, theirs = pd.concat(both, axis=1, join="inner").mean()  # over the seeds that both have
            part = Part(f"{run} / {reference}", FID_UNIT, ln_ratio(*both), BELOW).record()
            part["verdict"] = VERDICTS.get(part["verdict"], part["verdict"])
            yield {**facts, "steps": steps, "fid_of": fid_of, "fid": ours, "reference_fid": theirs, **part}


def ablation_table(params: Params, evaluations: pd.DataFrame) -> pd.DataFrame:
    """All studies: COLUMNS and a Part's record; evaluations: those of runs marked `ablation` too."""
    found = [record for study in params.ablations for record in records(params, evaluations, study)]
    return pd.DataFrame(found) if found else pd.DataFrame(columns=list(COLUMNS))
