"""Tables 1 and 2: selections of measured rows (tables.yaml) beside the paper's numbers (paper/*.csv).

A row's `source` is "measured", "cited" (only the paper has a number) or "not measured" (its cells are empty). Every
table has its floors: what the metrics give for real images, reconstructions and, in Table 1, other images' captions.
"""

import itertools
import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from splam.report.metrics import CONTROLS, MEASURES, SECOND_DRAW, Metrics, distinct, expand, steps_text, variants, where

CONTENT = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
TABLES: dict[str, dict[str, Any]] = CONTENT["tables"]
NAMES: dict[str, str] = CONTENT["columns"]
FLOORS = TABLES["table1"]["floors"]


def lines_of(table: dict[str, Any], rows: pd.DataFrame, pipelines: Collection[str]) -> Iterator[dict[str, Any]]:
    """The columns that pick out each of a table's lines, dataset by dataset: the methods, pipelines, floors."""
    scale = {"guidance_scale": table["guidance_scale"]}
    for dataset in table["datasets"]:
        for entry in table["lines"]:
            if entry["method"] in ("SPLAM", "SPLAM-LoRA"):  # each of its variants that was measured
                measured = variants(where(rows, skip=entry["skip"], **scale), entry["method"])
                always = ["raw input", "scaled input"] if entry["method"] == "SPLAM" else []
                entry = {"variant": list(dict.fromkeys([*always, *measured])), **entry}
            if entry.get("dataset", dataset) == dataset:
                yield from expand({"dataset": dataset, **scale, **entry})
        theirs = where(rows, system=tuple(pipelines), dataset=dataset)
        keys = ["method", "steps", "dataset", "system", "guidance_scale"]
        yield from theirs[keys].drop_duplicates().to_dict("records")  # a row a seed
        yield from ({"method": floor, "dataset": dataset} for floor in table["floors"])


def summary(found: pd.DataFrame) -> dict[str, object]:
    """Means over seeds, standard errors where there are several, counts, and the source."""
    numbers = distinct(found, "seed")[list(MEASURES)].astype(float)
    values = numbers.mean().to_dict() | {f"{m}_se": numbers[m].sem() for m in ("fid", "clip_score")}
    counts = {"seeds": len(found), **found[["images", "iteration"]].iloc[0]} if len(found) else {}
    return values | counts | {"source": "measured" if len(found) else "not measured"}


def measured(table: dict[str, Any], metrics: Metrics, pipelines: Collection[str]) -> pd.DataFrame:
    """The table's own rows, `base` the method alone, `method` with SPLAM's variant; latencies where it compares."""
    rows, records = where(pd.concat([metrics.rows, metrics.floors]), final=True), []
    for line in lines_of(table, metrics.rows, pipelines if table["compares"] else ()):
        name = f"{line['method']} ({line['variant']})" if "variant" in line else line["method"]
        records.append({"base": line["method"], **line, "method": name, **summary(where(rows, **line))})
    if not table["compares"]:
        return pd.DataFrame(records)
    seconds = metrics.latency.rename(columns={"method": "base", "seconds_median": "latency_s"})
    as_lcm = where(seconds, base="SPLAM").assign(base="LCM (fix w)")  # both publish the same network
    seconds = pd.concat([seconds, as_lcm])[["base", "steps", "latency_s"]]
    return pd.DataFrame(records).merge(seconds, how="left", on=["base", "steps"])


def build_table(name: str, metrics: Metrics, pipelines: Collection[str] = ()) -> pd.DataFrame:
    """A table by its name; pipelines: the third-party systems, rows of Table 2."""
    keys, paper = ["base", "dataset", "steps"], pd.read_csv(Path(__file__).parent / "paper" / f"{name}.csv")
    found = measured(TABLES[name], metrics, pipelines)
    cited = paper[~paper.set_index(keys).index.isin(found.set_index(keys).index)]
    cited = cited.assign(method=cited["base"], dataset=None, source="cited")
    found = found.merge(paper, how="left", on=keys)
    known = (found["source"] == "measured") | found.filter(like="paper_").notna().any(axis=1)
    found = found[known.groupby(found["base"]).transform("any")]
    whole = pd.concat([found, cited]).reindex(columns=CONTENT["saved"])
    whole = whole.astype(dict.fromkeys(("steps", "seeds", "images", "skip", "iteration"), "Int64"))
    return whole[[column for column in whole if column in CONTENT["always"] or whole[column].notna().any()]]


def written(column: str, value: object, error: object = None, grouping: str = ",") -> str:
    """A cell as text: numbers in the formats of tables.yaml, with their error if any; empty if missing."""
    if pd.isna(value):
        return ""
    form = next((form for start, form in CONTENT["formats"].items() if column.startswith(start)), ".6g")
    text = f"{value:z{grouping if form.endswith('f') else ''}{form}}" if isinstance(value, float) else str(value)
    return text if pd.isna(error) else f"{text} ± {written(column, error)}"


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table with its numbers rounded."""
    pd.DataFrame({c: [written(c, v, grouping="") for v in table[c]] for c in table}).to_csv(path, index=False)


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """A table as text: the measures that the paper prints, '812.0 (43.87)' with the paper's number in brackets."""
    shown = {"method": table["method"], "test set": table["dataset"].fillna(""), "steps": table["steps"].astype(str)}
    for measure in (measure for measure in CONTENT["best"] if f"paper_{measure}" in table):
        columns = table.reindex(columns=[measure, f"{measure}_se", f"paper_{measure}"]).itertuples(index=False)
        cells = [(written(measure, ours, error), written("paper_", paper)) for ours, error, paper in columns]
        shown[NAMES[measure]] = [f"{ours} ({paper})".strip() if paper else ours for ours, paper in cells]
    return pd.DataFrame(shown).replace("<NA>", "")


def lay_out(table: pd.DataFrame, steps: tuple[int, ...] = ()) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    """How the paper prints a table: its groups of columns, a measure on a test set each, and its rows.

    steps: the numbers of steps with a column each in every group. Rows of one `line` share it; families are in their
    order; MEASURE_best is whether a row is the best of its column; floors, the teacher and its network apart.
    """
    scales = table.get("guidance_scale", pd.Series(dtype=float))
    rows = table.assign(dataset=table["dataset"].fillna(table["dataset"].iloc[0]), line=table["method"])
    if scales.nunique() > 1:
        rows["line"] += scales.map(", w = {:g}".format, na_action="ignore").fillna("")
    rows = rows.assign(**rows.reindex(columns=["steps", "seeds"]).fillna(0).astype(int))
    if not steps:
        rows["line"] += [f", {steps_text(n)}" if n else "" for n in rows["steps"]]
    families = rows["family"].mask(rows["method"].isin(FLOORS), "Floors").ffill().bfill() if "family" in rows else ""
    rows["family"] = pd.Categorical(pd.Series(families, rows.index), CONTENT["families"])
    apart = (rows["source"] != "measured") | rows["method"].isin([*FLOORS, *CONTROLS, "Teacher", SECOND_DRAW])
    groups = []
    for test, (measure, best) in itertools.product(rows["dataset"].unique(), CONTENT["best"].items()):
        if where(rows, dataset=test).reindex(columns=[measure, f"paper_{measure}"]).notna().any(axis=None):
            main = f"paper_{measure}" in rows or "paper_fid" not in rows and measure in ("fid", "clip_score")
            groups.append({"test": test, "measure": measure, "main": main})
            values = rows.get(measure, pd.Series(math.nan, rows.index)).mask(apart)
            column = [rows["dataset"], *([rows["steps"]] if steps else [])]
            rows[f"{measure}_best"] = values == values.groupby(column).transform(best) if best else False
    return groups, rows


def markdown(frame: pd.DataFrame) -> str:
    """A readable table in Markdown: a "|" in a name ends no cell."""
    return frame.map(lambda cell: str(cell).replace("|", r"\|")).to_markdown(index=False, disable_numparse=True)


def caption(name: str, table: pd.DataFrame, metrics: Metrics) -> str:
    """What a table shows: metrics by their full names, sample count, what ± means, and the paper's setting."""
    counts = ", ".join(f"{n:,}" for n in sorted(table["images"].dropna().unique())) if "images" in table else "no"
    shown = ["fid_name", "clip_name", *(["clip_name_beside"] if "clip_score_beside" in table else [])]
    notes = [f"{'; '.join(metrics.fact(column) for column in shown)}; {counts} images."]
    notes += ["Baselines: trailing times."] if "trailing" in metrics.fact("sampler") else []
    notes += ["± is the standard error over seeds."] if table["fid_se"].notna().any() else []
    return " ".join([*notes, f"The paper's numbers: {TABLES[name]['printed']}"])
