"""The saved numbers of a profile, reports/PROFILE/metrics, as frames, and how to pick rows from them."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

MEASURES = ("fid", "fid_teacher", "gap_closed", "kid", "precision", "recall", "rmse_teacher")
MEASURES += ("clip_score", "clip_score_beside", "caption_accuracy")
UNDISTILLED, SECOND_DRAW = "Undistilled", "Teacher, second draw"  # rows that gap_closed is reckoned from
CONTROLS = (UNDISTILLED, "Undistilled, guided", "Teacher, w = 1")  # what was never distilled
COMPARABLE = ("fid_name", "clip_name", "references", "captions")  # numbers that differ in these are never compared
QUOTED = ("protocol", *COMPARABLE, "clip_name_beside", "dtype", "first_sample_seed", "sampler")
TEXTS = ("system", "run", "method", "variant", "dataset", *QUOTED)
COLUMNS = (
    *(*TEXTS, *MEASURES, "guidance_scale", "skip", "multiple_estimation", "seed", "iteration", "steps", "images"),
    *("final", "ablation", "t", "gamma"),
    *("delta_rms", "delta_rms_se", "delta_l2", "delta_l2_se", "x0_error_rms", "rmse"),
    *("seconds_median", "unet_seconds_median"),
)


@dataclass(frozen=True)
class Metrics:
    """All saved numbers of a profile, each frame with COLUMNS; what was not measured has no rows.

    rows: the evaluations that claims, tables and figures are made from; evaluations: those of `ablation` runs too.
    """

    rows: pd.DataFrame
    evaluations: pd.DataFrame
    floors: pd.DataFrame
    delta: pd.DataFrame
    errors: pd.DataFrame
    latency: pd.DataFrame
    world: pd.DataFrame

    def fact(self, column: str) -> str:
        """What the evaluations are quoted with, such as fid_name: the values of one of QUOTED."""
        return "; ".join(sorted(set(self.evaluations[column]) - {""})) or f"{column} not recorded"


def load_metrics(folder: Path) -> Metrics:
    """Read a folder of metrics. Raises ValueError if rows of one dataset cannot be compared."""

    def read(*patterns: str) -> pd.DataFrame:  # a hash is a text even where it has digits alone
        paths = sorted(path for pattern in patterns for path in folder.glob(pattern))
        return _frame([pd.read_csv(path, dtype=dict.fromkeys(TEXTS, str)) for path in paths])

    evaluations, delta = read("evaluate/*.csv", "floors.csv"), read("delta.csv", "delta/*.csv")
    evaluations = evaluations.fillna({"seed": evaluations["seed"].min()})  # of floors, for which nothing is drawn
    check_comparable(evaluations)
    floors = where(evaluations, system="floors")
    evaluations = evaluations.drop(floors.index)
    world = _frame([pd.DataFrame(json.loads(path.read_text())["rows"]) for path in folder.glob("world.json")])
    evaluations = with_gap_closed(evaluations)
    kept = [where(frame, ablation=False) for frame in (delta, read("errors/*.csv"))]
    return Metrics(where(evaluations, ablation=False), evaluations, floors, *kept, read("latency.csv"), world)


def _frame(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """Frames as one, with COLUMNS; an absent text is empty, a row is final and no ablation unless it says so."""
    frames = [pd.DataFrame(columns=list(COLUMNS), dtype=float), *(frame for frame in frames if len(frame))]
    frame = pd.concat(frames, ignore_index=True)  # a file of a header alone would make numbers objects
    texts = {name: frame[name].astype(object).where(frame[name].notna(), "") for name in TEXTS}
    seeds = pd.to_numeric(texts["first_sample_seed"]).astype("Int64").astype(str)  # 1000000 and 1e+06 are one
    texts["first_sample_seed"] = seeds.replace("<NA>", "")
    return frame.assign(**texts, final=~frame["final"].isin([False]), ablation=frame["ablation"].isin([True]))


def with_gap_closed(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with gap_closed: how much of its way from the undistilled network to the teacher a system has gone.

    (undistilled - it) / (undistilled - floor), by the FID to the teacher's images of the same w and noise: the
    undistilled network is drawn from in as many steps, the floor is the teacher's own second draw. Not clipped.
    """
    keys = ["dataset", "guidance_scale", "seed"]
    starts = where(rows, method=UNDISTILLED).groupby([*keys, "steps"])["fid_teacher"].mean().rename("start")
    floors = where(rows, method=SECOND_DRAW).groupby(keys)["fid_teacher"].mean().rename("floor")
    both = rows.join(starts, on=[*keys, "steps"]).join(floors, on=keys)
    return rows.assign(gap_closed=(both["start"] - both["fid_teacher"]) / (both["start"] - both["floor"]))


def check_comparable(rows: pd.DataFrame) -> None:
    """Raises ValueError where rows of one dataset and seed differ in their metric, references or captions."""
    for column in COMPARABLE:
        for (dataset, _), known in rows[rows[column] != ""].groupby(["dataset", "seed"]):
            found = known.groupby(column)["system"].first().to_dict()
            if len(found) > 1:
                raise ValueError(
                    f"evaluations on {dataset} differ in {column}, {found}: their numbers cannot be compared; "
                    "delete the metrics files that no longer belong to the profile"
                )


def where(rows: pd.DataFrame, **values: object) -> pd.DataFrame:
    """The rows whose columns have the given values; a tuple allows each of its values."""
    keep = np.ones(len(rows), dtype=bool)
    for column, value in values.items():
        keep &= rows[column].isin(value).to_numpy() if isinstance(value, tuple) else rows[column].to_numpy() == value
    return rows[keep]


def distinct(rows: pd.DataFrame, *keys: str) -> pd.DataFrame:
    """The rows themselves. Raises ValueError if two have the same keys: two runs that cannot be told apart."""
    if rows.duplicated(list(keys)).any():
        runs = ", ".join(sorted(set(rows["run"])))
        raise ValueError(f"several rows for one seed among the runs {runs}: give them variants or drop one")
    return rows


def by_seed(rows: pd.DataFrame, value: str, *columns: str) -> pd.Series | pd.DataFrame:
    """One value for each seed (index: seed); of columns that are named, a column for each of their values."""
    keys = ["seed", *columns]
    rows = distinct(rows.dropna(subset=[value, *columns]), *keys)
    return rows.set_index(keys)[value].astype(float).unstack(columns)


def variants(rows: pd.DataFrame, method: str = "SPLAM") -> list[str]:
    """SPLAM's or SPLAM-LoRA's variants in rows, the paper's raw input first, then the scaled one."""
    found = set(where(rows, method=method)["variant"]) - {""}
    return sorted(found, key=lambda variant: (variant not in ("raw input", "scaled input"), variant))


def expand(entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every combination of the members of an entry's lists."""
    lists = [value if isinstance(value, list) else [value] for value in entry.values()]
    return (dict(zip(entry, values, strict=True)) for values in itertools.product(*lists))


def steps_text(count: float) -> str:
    """'1 step', '4 steps'."""
    return "1 step" if count == 1 else f"{count:g} steps"
