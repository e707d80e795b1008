"""Ablations: runs beside the reference that they differ from in one factor, paired by seed; what each costs.

params.ablations names the studies; tuning two methods with equal effort is two studies with equal runs. A run is better
or worse than its reference where the 95 % t interval of ln(FID / the reference's) lies on one side of 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd

from splam.claims import BELOW, FAILS, HOLDS, Part, by_seed, ln_ratio, pair
from splam.params import Params, differences, resolve
from splam.sizes import training_calls
from splam.tables import number

BETTER, WORSE = "better", "worse"
JUDGED = {HOLDS: BETTER, FAILS: WORSE}
COLUMNS = (
    *("study", "run", "factor", "value", "reference", "reference_value", "seeds", "network_calls", "teacher_calls"),
    *("reference_calls", "steps", "fid", "reference_fid", "ln_ratio", "low", "high", "values", "verdict"),
    *("fid_teacher", "reference_fid_teacher", "teacher_ln_ratio", "teacher_low", "teacher_high", "teacher_values"),
    "teacher_verdict",
)
UNIT = "ln ratio of FID"


def fids(rows: pd.DataFrame, run: str, steps: int, column: str = "fid") -> pd.Series:
    """FID, or another column, of a finished run on unseen combinations (index: seed)."""
    found = rows[(rows["run"] == run) & (rows["steps"] == steps) & (rows["dataset"] == "unseen")]
    return by_seed(found[~found["final"].isin([False])], column)


def calls(params: Params, run: str) -> dict[str, int]:
    """Network calls of a training of a run, by network (splam.sizes.training_calls)."""
    return training_calls(resolve(params, f"{run}-s{params.runs[run].seeds[0]}"), params.trajectories.solver_skip)


def comparison(
    rows: pd.DataFrame, run: str, reference: str, steps: int, column: str = "fid", prefix: str = ""
) -> dict[str, Any]:
    """A run against its reference in so many steps, over the seeds that both have; FIDs are means over them.

    column: of the FID; prefix: put before the names of what follows from it.
    """
    pairs = pair(fids(rows, run, steps, column), fids(rows, reference, steps, column), shared=False)
    part = Part(f"{run} / {reference}", UNIT, ln_ratio(pairs), BELOW)
    means = [sum(side) / len(pairs) for side in zip(*pairs, strict=True)] or [math.nan, math.nan]
    judged = {
        **dict(zip(("ln_ratio", "low", "high"), (part.estimate, *part.bounds), strict=True)),
        "values": " ".join(f"{value:.6g}" for value in part.values),
        "verdict": JUDGED.get(part.verdict, part.verdict),
    }
    facts = {"steps": steps, "seeds": len(pairs), **dict(zip((column, f"reference_{column}"), means, strict=True))}
    return facts | {prefix + key: value for key, value in judged.items()}


def records(params: Params, rows: pd.DataFrame, study: str) -> Iterator[dict[str, Any]]:
    """One row for each run of a study and each number of steps."""
    settings = params.ablations[study]
    reference = settings.reference
    for run in (*settings.runs, *settings.recipes):
        changed, made = differences(params, run, reference), calls(params, run)
        facts = {"study": study, "run": run, "factor": ", ".join(changed), "reference": reference}
        for side, name in enumerate(("value", "reference_value")):
            facts[name] = ", ".join(str(values[side]) for values in changed.values())
        facts |= {"network_calls": sum(made.values()), "teacher_calls": made["teacher"]}
        facts["reference_calls"] = sum(calls(params, reference).values())
        for steps in params.evaluation.steps:
            to_teacher = comparison(rows, run, reference, steps, "fid_teacher", "teacher_")
            yield facts | to_teacher | comparison(rows, run, reference, steps)


def ablation_table(params: Params, rows: pd.DataFrame) -> pd.DataFrame:
    """All studies, COLUMNS; rows: evaluations (claims.ROW_COLUMNS), those of runs marked `ablation` too."""
    found = [record for study in params.ablations for record in records(params, rows, study)]
    return pd.DataFrame(found, columns=list(COLUMNS))


def ratio_text(row: dict[str, Any], prefix: str = "") -> str:
    """'0.934 [0.901, 0.968]': the ratio of FIDs with its interval; empty where it was not measured."""
    if pd.isna(row[f"{prefix}ln_ratio"]):
        return ""
    ratio, low, high = (math.exp(row[prefix + key]) for key in ("ln_ratio", "low", "high"))
    return f"{ratio:.3f}" if math.isnan(low) else f"{ratio:.3f} [{low:.3f}, {high:.3f}]"


def overall(verdicts: dict[int, str]) -> str:
    """The verdicts by number of steps in words: 'better', or 'better in 2, 4; within noise in 1'."""
    steps = {v: [str(n) for n, verdict in verdicts.items() if verdict == v] for v in dict.fromkeys(verdicts.values())}
    if len(steps) == 1:
        return next(iter(steps))
    return "; ".join(f"{verdict} in {', '.join(counts)}" for verdict, counts in steps.items())


def readable(study: pd.DataFrame) -> pd.DataFrame:
    """A study as it is read, one row for each run: texts only."""
    shown = []
    for _, group in study.groupby("run", sort=False):
        rows = group.to_dict("records")
        first = rows[0]
        line = {key.replace("_", " "): first[key] for key in ("factor", "value", "reference_value")}
        line |= {"seeds": str(min(row["seeds"] for row in rows))}
        line["calls / reference's"] = f"{first['network_calls'] / first['reference_calls']:.2f}"
        for row in rows:
            steps = f"{row['steps']} step" + "s" * (row["steps"] > 1)
            line |= {f"FID, {steps}": number(row["fid"]), f"ratio, {steps}": ratio_text(row)}
        line["verdict"] = overall({row["steps"]: row["verdict"] for row in rows})
        for row in rows:
            line[f"to teacher, {row['steps']} step" + "s" * (row["steps"] > 1)] = ratio_text(row, "teacher_")
        line["verdict to teacher"] = overall({row["steps"]: row["teacher_verdict"] for row in rows})
        shown.append(line)
    return pd.DataFrame(shown)


def best(study: pd.DataFrame) -> str:
    """What a study gave, in words: its trials, the lowest FIDs in the most steps, and what wins at every step count."""
    trials, steps = study["run"].nunique(), study["steps"].max()
    count = f"{trials} trial" + "s" * (trials > 1)
    if study["ln_ratio"].isna().all():
        return f"{count}, none measured."
    found = [count, f"lowest FID in {steps} steps beside the reference: {_lowest(study, steps)}"]
    if study["teacher_ln_ratio"].notna().any():
        found.append(f"lowest FID to teacher: {_lowest(study, steps, 'fid_teacher', 'teacher_')}")
    winners = _winners(study, "verdict"), _winners(study, "teacher_verdict")
    found += [f"better at every step count by FID: {winners[0]}", f"by FID to teacher: {winners[1]}"]
    return "; ".join(found) + "."


def _lowest(study: pd.DataFrame, steps: int, column: str = "fid", prefix: str = "") -> str:
    measured = study[(study["steps"] == steps) & study[f"{prefix}ln_ratio"].notna()]
    row = measured.loc[measured[f"{prefix}ln_ratio"].idxmin()]
    values = f"{number(row[column])} against {number(row[f'reference_{column}'])}"
    return f"{row['factor']} = {row['value']}, {values} ({row[f'{prefix}verdict']})"


def _winners(study: pd.DataFrame, column: str) -> str:
    won = study.groupby("run", sort=False)[column].agg(lambda verdicts: (verdicts == BETTER).all())
    return ", ".join(won.index[won]) or "none"


def caption(table: pd.DataFrame, fid_name: str) -> str:
    """What the ratios and verdicts are, and how many would be found by chance."""
    return (
        f"{fid_name} of each run on unseen combinations, and its ratio to the reference's, paired by seed: the "
        "geometric mean with its 95 % t interval. Below 1 is better; a verdict needs all of it on one side. Of "
        f"the {len(table)} comparisons of all studies about {len(table) / 20:.0f} would get one by chance. "
        "To teacher: the same ratio of the FID to the teacher's own images. Calls: "
        "forward passes of any network for one sample while training (a backward pass counts as two, the teacher's as "
        "if no cache shared them), over the reference's."
    )


def markdown(table: pd.DataFrame, fid_name: str) -> str:
    """All studies in Markdown."""
    parts = [caption(table, fid_name)]
    for study, rows in table.groupby("study", sort=False):
        text = readable(rows).to_markdown(index=False, disable_numparse=True)
        parts += [f"**{study}**, reference {rows['reference'].iloc[0]}. {best(rows)}", text]
    return "\n\n".join(parts) + "\n"


def forest(study: pd.DataFrame) -> pd.DataFrame:
    """A study as rows of figures.claims_forest, green where a run is better than its reference."""
    labels = study["factor"] + " = " + study["value"].astype(str)
    steps = [f"{n} step" + "s" * (n > 1) for n in study["steps"]]
    low, high = BELOW
    facts = {"id": labels, "variant": "", "part": steps, "unit": UNIT, "accept_low": low, "accept_high": high}
    return study.assign(**facts, estimate=study["ln_ratio"])
