"""Tables 1 and 2: measured numbers beside the paper's, one function a table, and their text.

A row's `source` is "measured", "cited" (a method that only the paper has a number for), or "not measured" (it
belongs to the table, its cells are empty). Every table ends with its floors: real images against real images, the
autoencoder's reconstructions, and for CLIP scores real images with other images' captions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from importlib.resources import files

import pandas as pd

PAPER_NAMES = {
    "DPM Solver": "DPM-Solver",
    "DPM Solver++": "DPM-Solver++",
    "DPM++": "DPM-Solver++",
    "LCM": "LCM (fix w)",
    "SDv1.5": "Teacher",
}
PAPER_SETS = {"unseen": "COCO-30k", "seen": "LAION-Aesthetics-6+"}
UNDISTILLED = "Undistilled"
FLOORS = ("Real images", "VAE reconstruction", "Shuffled captions")
METRICS = ("fid", "fid_teacher", "clip_score", "clip_score_beside", "kid", "precision", "recall", "paired_distance")
TABLE_COLUMNS = (
    *("method", "dataset", "steps", "fid", "clip_score", "fid_se", "clip_score_se", "seeds", "images", "source"),
    *("paper_fid", "paper_clip_score", "latency_s", "paper_latency_s", "fid_teacher", "kid", "precision", "recall"),
    *("paired_distance", "family", "variant", "guidance_scale", "skip", "clip_score_beside", "splam_ratio"),
)
BESIDE_FID = {
    "splam_ratio": "4-step SPLAM / it",
    "fid_teacher": "FID to teacher",
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
    "paired_distance": "pixels from teacher",
}
TITLES = {
    "table1": "Table 1. Few-step generation, w = 8, k = 20",
    "table2a": "Table 2a. w = 3, the larger evaluation",
    "table2b": "Table 2b. w = 3, the smaller evaluation",
    "table2c": "Table 2c. w = 8",
}
PAIRED = (
    "FID to teacher has the teacher's own many-step images of the same captions, noise and w in place of real ones; "
    "pixels from teacher is the RMS difference from them, pixels in [0, 1]. Undistilled is the teacher's network "
    "drawn from as if it were a student, without guidance: what training starts from."
)
PAPER_SCALE = {
    "table1": "The paper's numbers: SD 2.1-base, COCO-30k for the unseen set, LAION-Aesthetics-6+ for the seen one.",
    "table2a": "The paper's numbers: SD 1.5, COCO 2014, 30,000 images.",
    "table2b": "The paper's numbers: SD 1.5, COCO 2017, 5,000 images.",
    "table2c": "The paper's numbers: SD 1.5, COCO 2014, 30,000 images.",
}


@dataclass(frozen=True)
class Line:
    """One row of a table: its name, sampling steps, and the evaluation columns that pick it out."""

    method: str
    steps: int
    where: dict[str, object] = field(default_factory=dict)
    variant: str = ""

    @property
    def name(self) -> str:
        """The method, and for SPLAM how the student is fed."""
        return f"{self.method} ({self.variant})" if self.variant else self.method


def paper_table(name: str) -> pd.DataFrame:
    """The paper's own numbers (table1, table2a, table2b or table2c), with this project's names of the methods."""
    with files("splam.assets").joinpath("paper", f"{name}.csv").open() as file:
        table = pd.read_csv(file)
    table["method"] = table["method"].replace(PAPER_NAMES)
    table.loc[table["method"] == "Teacher", "steps"] = 50  # not given; assumed, see claim C8
    return table


def variants(rows: pd.DataFrame, **where: object) -> list[str]:
    """SPLAM's variants that a table shows: the paper's raw input and the scaled one always, others if measured."""
    shown = ["raw input", "scaled input"]
    found = rows[rows["method"] == "SPLAM"]
    for column, value in where.items():
        found = found[found[column] == value]
    return shown + sorted(set(found["variant"].dropna()) - {"", *shown})


def pick(rows: pd.DataFrame, line: Line, dataset: str) -> pd.DataFrame:
    """The line's rows of finished runs, one a seed; ValueError if they come from several runs."""
    keep = (rows["method"] == line.method) & (rows["steps"] == line.steps) & (rows["dataset"] == dataset)
    keep &= ~rows["final"].isin([False])
    if line.variant:
        keep &= rows["variant"] == line.variant
    for column, value in line.where.items():
        keep &= rows[column].isin([value])
    found = rows[keep]
    if found["run"].nunique() > 1 or found["seed"].duplicated().any():
        runs = ", ".join(sorted(found["run"].unique()))
        raise ValueError(f"{line.name} with {line.where}, {line.steps} steps: several rows for one seed ({runs})")
    return found


def summary(found: pd.DataFrame) -> dict[str, object]:
    """Means over seeds, standard errors where there are several seeds, counts, and the source."""
    values: dict[str, object] = {m: found[m].astype(float).mean() for m in METRICS}
    for metric in ("fid", "clip_score"):
        seen = found[metric].dropna().astype(float)
        values[f"{metric}_se"] = seen.std(ddof=1) / math.sqrt(len(seen)) if len(seen) > 1 else math.nan
    if len(found):
        values |= {"seeds": len(found), "images": int(found["images"].iloc[0])}
    return values | {"source": "measured" if len(found) else "not measured"}


def _record(rows: pd.DataFrame, line: Line, dataset: str, paper: pd.DataFrame) -> dict[str, object]:
    """A table row: what was measured and the paper's numbers for the same method and steps."""
    same = paper[(paper["method"] == line.method) & (paper["steps"] == line.steps)]
    printed = {f"paper_{c}": same[c].iloc[0] for c in ("fid", "clip_score", "latency_s") if c in same and len(same)}
    facts = {
        "variant": line.variant,
        "guidance_scale": line.where.get("guidance_scale"),
        "skip": line.where.get("skip"),
    }
    head = {"method": line.name, "dataset": dataset, "steps": line.steps}
    return {**head, **facts, **summary(pick(rows, line, dataset)), **printed}


def floor_records(floors: pd.DataFrame, dataset: str, names: tuple[str, ...]) -> list[dict[str, object]]:
    """The named floors of one dataset."""
    records = []
    for name in names:
        found = floors[(floors["method"] == name) & (floors["dataset"] == dataset)]
        records.append({"method": name, "dataset": dataset, **summary(found)})
    return records


def _frame(records: list[dict[str, object]]) -> pd.DataFrame:
    """Records as a table with all TABLE_COLUMNS that hold something, integers as such."""
    table = pd.DataFrame(records).reindex(columns=list(TABLE_COLUMNS))
    integers = {c: "Int64" for c in ("steps", "seeds", "images", "skip")}
    kept = ["method", "dataset", "steps", "fid", "clip_score", "fid_se", "seeds", "source", "paper_fid"]
    return table.astype(integers)[[c for c in TABLE_COLUMNS if c in kept or table[c].notna().any()]]


def table1(rows: pd.DataFrame, floors: pd.DataFrame) -> pd.DataFrame:
    """Table 1: w = 8, k = 20; 1, 2 and 4 steps; unseen and seen combinations; FID and CLIP score."""
    solver, student = {"guidance_scale": 8}, {"guidance_scale": 8, "skip": 20}
    named = [(m, solver, "") for m in ("DDIM", "DPM-Solver", "DPM-Solver++")]
    named += [(m, student, "") for m in ("LCM*", "LCM (fix w)")]
    named += [("SPLAM", student, v) for v in variants(rows, **student)]
    paper = paper_table("table1")
    records = []
    for dataset, printed in PAPER_SETS.items():
        beside = paper[paper["dataset"] == printed]
        start = [(UNDISTILLED, solver, "")] if dataset == "unseen" else []  # nobody compares with it on the other
        for method, where, variant in [*start, *named]:
            records += [_record(rows, Line(method, n, where, variant), dataset, beside) for n in (1, 2, 4)]
        records += floor_records(floors, dataset, FLOORS)
    return _frame(records)


def table2_lines(rows: pd.DataFrame, w: float) -> list[Line]:
    """The methods of Table 2 that this project measures, at guidance scale w."""
    solver, student = {"guidance_scale": w}, {"guidance_scale": w, "skip": 20}
    ours = {"guidance_scale": w, "skip": 100, "multiple_estimation": True}
    lines = [Line(method, 4, solver) for method in ("DDIM", "DPM-Solver++", "UniPC")]
    lines += [Line(UNDISTILLED, n, solver) for n in (2, 4)] + [Line("LCM-LoRA", 4, student)]
    for steps in (2, 4):
        lines.append(Line("LCM (fix w)", steps, student))
        lines += [Line("SPLAM", steps, ours, v) for v in variants(rows, guidance_scale=w, skip=100)]
    return [*lines, Line("Teacher", 50, solver)]


def pipeline_lines(rows: pd.DataFrame, dataset: str) -> list[Line]:
    """The measured pipelines of others' making (evaluation.pipelines), under their own names."""
    found = rows[rows["system"].astype(str).str.startswith("pipeline-") & (rows["dataset"] == dataset)]
    return [
        Line(row.method, int(row.steps), {"system": row.system, "guidance_scale": row.guidance_scale})
        for row in found.itertuples()
    ]


def latency_of(latency: pd.DataFrame, line: Line) -> float:
    """Median seconds from caption to image; LCM and SPLAM publish the same network, so one measurement serves both."""
    method = "SPLAM" if line.method == "LCM (fix w)" else line.method
    found = latency[(latency["method"] == method) & (latency["steps"] == line.steps)]
    return float(found["seconds_median"].iloc[0]) if len(found) else math.nan


def cited_records(paper: pd.DataFrame, lines: list[Line]) -> list[dict[str, object]]:
    """The paper's rows that none of the lines measures."""
    ours = {(line.method, line.steps) for line in lines}
    records = []
    for row in paper.to_dict("records"):
        if (row["method"], row["steps"]) not in ours:
            printed = {"paper_fid": row["fid"], "paper_latency_s": row["latency_s"], "family": row.get("family")}
            records.append({"method": row["method"], "steps": row["steps"], **printed, "source": "cited"})
    return records


def splam_fid(records: list[dict[str, object]]) -> float:
    """The FID of 4-step SPLAM in Table 2's records: of the scaled input, or the raw one if that is not measured."""
    found = {r["variant"]: r["fid"] for r in records if str(r["method"]).startswith("SPLAM") and r["steps"] == 4}
    scaled = found.get("scaled input", math.nan)
    return found.get("raw input", math.nan) if math.isnan(scaled) else scaled


def table2(name: str, rows: pd.DataFrame, latency: pd.DataFrame, floors: pd.DataFrame) -> pd.DataFrame:
    """Table 2a, 2b or 2c: latency and FID of few-step methods, of ours and others, then what only the paper has.

    splam_ratio: the FID of SPLAM in 4 steps over the row's.
    """
    w = 8 if name == "table2c" else 3
    dataset = "unseen-small" if name == "table2b" else "unseen"
    paper, lines = paper_table(name), table2_lines(rows, w) + pipeline_lines(rows, dataset)
    records = [_record(rows, line, dataset, paper) | {"latency_s": latency_of(latency, line)} for line in lines]
    ours = splam_fid(records)
    records = [record | {"splam_ratio": ours / record["fid"]} for record in records]
    return _frame(records + floor_records(floors, dataset, FLOORS[:2]) + cited_records(paper, lines))


def build_tables(rows: pd.DataFrame, latency: pd.DataFrame, floors: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """All tables by name: table1, table2a, table2b, table2c."""
    second = {name: table2(name, rows, latency, floors) for name in ("table2a", "table2b", "table2c")}
    return {"table1": table1(rows, floors), **second}


def number(value: object, digits: int = 4) -> str:
    """A number for reading: `digits` significant digits, no exponent; rounding errors are 0; empty if missing."""
    if value is None or pd.isna(value):
        return ""
    if abs(value) < 1e-6:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def as_printed(value: object) -> str:
    """A number of the paper's; empty if it has none."""
    return "" if pd.isna(value) else f"{value:.6g}"


def with_error(mean: object, error: object) -> str:
    """'mean ± standard error', or the mean alone."""
    text = number(mean)
    return f"{text} ± {number(error, 2)}" if text and not pd.isna(error) else text


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """A table as it is read: texts only, each measured number beside the paper's."""
    wide = table.reindex(columns=list(TABLE_COLUMNS))
    shown = {"method": wide["method"], "steps": wide["steps"].map(number)}
    if wide["dataset"].nunique() > 1:
        shown = {"method": wide["method"], "test set": wide["dataset"], "steps": shown["steps"]}
    shown["FID"] = [with_error(*pair) for pair in zip(wide["fid"], wide["fid_se"], strict=True)]
    shown["paper's FID"] = wide["paper_fid"].map(as_printed)
    shown |= {name: wide[c].map(lambda v: number(v, 3)) for c, name in BESIDE_FID.items() if c in table}
    if "paper_clip_score" in table:
        pairs = zip(wide["clip_score"], wide["clip_score_se"], strict=True)
        shown["CLIP score"] = [with_error(*pair) for pair in pairs]
        shown["paper's CLIP score"] = wide["paper_clip_score"].map(as_printed)
        if "clip_score_beside" in table:
            shown["second CLIP score"] = wide["clip_score_beside"].map(number)
    if "paper_latency_s" in table:
        shown["latency (s)"] = wide["latency_s"].map(lambda v: number(v, 3))
        shown["paper's latency (s)"] = wide["paper_latency_s"].map(as_printed)
    shown |= {"seeds": wide["seeds"].map(number), "source": wide["source"]}
    return pd.DataFrame(shown).fillna("")


def caption(name: str, table: pd.DataFrame, protocol: dict[str, object]) -> str:
    """What the table shows: its setting, metrics by their full names, sample count, and what ± means."""
    counts = sorted(table["images"].dropna().unique()) if "images" in table else []
    images = ", ".join(f"{n:,}" for n in counts) or "no"
    metrics = [protocol.get("fid", "FID (features not recorded)")]
    if "paper_clip_score" in table:
        metrics.append(protocol.get("clip_score", "CLIP score (model not recorded)"))
        if "clip_score_beside" in table:
            metrics.append(f"second: {protocol.get('clip_score_beside', 'CLIP score (model not recorded)')}")
    times = f" Baselines: {protocol['baseline_times']} times." if "baseline_times" in protocol else ""
    spread = " ± is the standard error over seeds." if table["fid_se"].notna().any() else ""
    pairs = f" {PAIRED}" if "paired_distance" in table else ""
    shown = f"{'; '.join(map(str, metrics))}; {images} images.{times}{spread}{pairs}"
    return f"{TITLES[name]}. {shown} {PAPER_SCALE[name]}"


def markdown(table: pd.DataFrame, text: str) -> str:
    """The caption and the table in Markdown."""
    return f"{text}\n\n{readable(table).to_markdown(index=False, disable_numparse=True)}\n"


def _ratio(a: float, b: float) -> str:
    return "" if pd.isna(a / b) else f"{a / b:.3f}"


def headline(table: pd.DataFrame, dataset: str = "unseen") -> pd.DataFrame:
    """SPLAM against LCM (fix w) from Table 1: FID of both, their ratio, and the ratio in the paper.

    A ratio can be compared with the paper's where the FIDs themselves, of other data and features, cannot.
    """
    rows = table[table["dataset"] == dataset].set_index(["method", "steps"])
    names = [m for m in rows.index.get_level_values(0).unique() if m.startswith("SPLAM")]
    records = []
    for name in names:
        for steps in (1, 2, 4):
            lcm, ours = rows.loc[("LCM (fix w)", steps)], rows.loc[(name, steps)]
            records.append(
                {
                    "student": name,
                    "steps": str(steps),
                    "LCM's FID": with_error(lcm["fid"], lcm["fid_se"]),
                    "SPLAM's FID": with_error(ours["fid"], ours["fid_se"]),
                    "SPLAM / LCM": _ratio(ours["fid"], lcm["fid"]),
                    "SPLAM / LCM in the paper": _ratio(ours["paper_fid"], lcm["paper_fid"]),
                    "seeds": number(ours["seeds"]),
                }
            )
    return pd.DataFrame(records)


def world_card(world: pd.DataFrame, floors: pd.DataFrame) -> pd.DataFrame:
    """FID of the undistilled teacher by sampler, w and steps, and of real and reconstructed images (one column).

    On unseen combinations; of DDIM in the most steps teacher_quality says more.
    """
    records = {}
    for row in world[world["dataset"] == "unseen"].dropna(subset=["fid"]).to_dict("records"):
        name = f"{row['method']}, w = {row['guidance_scale']:g}"
        records.setdefault(name, {})[int(row["steps"])] = number(row["fid"])
    card = pd.DataFrame.from_dict(records, orient="index").sort_index(axis=1)
    card.columns = [f"{n} steps" if n > 1 else "1 step" for n in card.columns]
    for name in FLOORS[:2]:
        found = floors[(floors["method"] == name) & (floors["dataset"] == "unseen")]
        card.loc[name, "no sampling"] = number(found["fid"].iloc[0]) if len(found) else ""
    return card.fillna("").rename_axis("sampler").reset_index()


def teacher_quality(world: pd.DataFrame, floors: pd.DataFrame) -> pd.DataFrame:
    """Every metric of the teacher's DDIM in the most steps, a row for each test set and w, then each set's floors.

    Unseen and seen combinations are measured against references of their own: compare each with its own floors.
    """
    most = world[(world["method"] == "DDIM") & (world["steps"] == world["steps"].max())]
    records = []
    for dataset in ("unseen", "seen"):
        drawn = most[most["dataset"] == dataset].sort_values("guidance_scale").to_dict("records")
        real = floors[(floors["dataset"] == dataset) & floors["method"].isin(FLOORS)].to_dict("records")
        rows = [(f"DDIM, {row['steps']:g} steps, w = {row['guidance_scale']:g}", row) for row in drawn]
        rows += [(row["method"], row) for row in real if drawn]
        records += [{"what": name, "test set": dataset, **_quality(row)} for name, row in rows]
    return pd.DataFrame(records)


def _quality(row: dict[str, object]) -> dict[str, str]:
    """A row's FID and what stands beside it, as text."""
    names = {"fid": "FID", "kid": "KID", "precision": "precision", "recall": "recall", "clip_score": "CLIP score"}
    return {name: number(row.get(column)) for column, name in names.items()}
