"""Tables 1 and 2: selections of measured rows (tables.yaml) beside the paper's numbers (paper/*.csv).

A row's `source` is "measured", "cited" (only the paper has a number) or "not measured" (its cells are empty). Every
table has its floors: what the metrics give for real images, for reconstructions, and for other images' captions.
"""

import itertools
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from splam.report.metrics import MEASURES, SECOND_DRAW, Metrics, distinct, expand, steps_text, variants, where

CONTENT = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
TABLES: dict[str, dict[str, Any]] = CONTENT["tables"]
NAMES: dict[str, str] = CONTENT["columns"]
FLOORS = TABLES["table1"]["floors"]


def lines_of(table: dict[str, Any], rows: pd.DataFrame, pipelines: Collection[str]) -> Iterator[dict[str, Any]]:
    """The columns that pick out each of a table's lines, dataset by dataset: the methods, pipelines, floors."""
    scale = {"guidance_scale": table["guidance_scale"]}
    for dataset in table["datasets"]:
        for entry in table["lines"]:
            if entry["method"] == "SPLAM":  # the paper's raw input and the scaled one always, others if measured
                measured = variants(where(rows, skip=entry["skip"], **scale))
                entry = {"variant": list(dict.fromkeys(["raw input", "scaled input", *measured])), **entry}
            if entry.get("dataset", dataset) == dataset:
                yield from expand({"dataset": dataset, **scale, **entry})
        for row in where(rows, system=tuple(pipelines), dataset=dataset).to_dict("records"):
            yield {key: row[key] for key in ("method", "steps", "dataset", "system", "guidance_scale")}
        yield from ({"method": floor, "dataset": dataset} for floor in table["floors"])


def summary(found: pd.DataFrame) -> dict[str, object]:
    """Means over seeds, standard errors where there are several, counts, and the source."""
    numbers = distinct(found, "seed")[list(MEASURES)].astype(float)
    values = numbers.mean().to_dict() | {f"{m}_se": numbers[m].sem() for m in ("fid", "clip_score")}
    counts = {"seeds": len(found), **found[["images", "iteration"]].iloc[0]} if len(found) else {}
    return values | counts | {"source": "measured" if len(found) else "not measured"}


def measured(table: dict[str, Any], metrics: Metrics, pipelines: Collection[str]) -> pd.DataFrame:
    """The table's own rows, with `base`, the method alone, beside a `method` that names SPLAM's variant."""
    rows, records = where(pd.concat([metrics.rows, metrics.floors]), final=True), []
    for line in lines_of(table, metrics.rows, pipelines if table["compares"] else ()):
        name = f"{line['method']} ({line['variant']})" if "variant" in line else line["method"]
        records.append({"base": line["method"], **line, "method": name, **summary(where(rows, **line))})
    return pd.DataFrame(records)


def compared(found: pd.DataFrame, latency: pd.DataFrame) -> pd.DataFrame:
    """Rows with their latency, and splam_ratio: the FID of SPLAM in 4 steps (scaled input if measured) over theirs."""
    seconds = latency.rename(columns={"method": "base", "seconds_median": "latency_s"})[["base", "steps", "latency_s"]]
    as_lcm = where(seconds, base="SPLAM").assign(base="LCM (fix w)")  # both publish the same network
    found = found.merge(pd.concat([seconds, as_lcm]), how="left", on=["base", "steps"])
    ours = where(found, base="SPLAM", steps=4).set_index("variant")["fid"]
    ours = ours.reindex(["scaled input", "raw input"]).dropna()
    return found.assign(splam_ratio=(ours.iloc[0] if len(ours) else math.nan) / found["fid"].where(found["steps"] > 0))


def build_table(name: str, metrics: Metrics, pipelines: Collection[str] = ()) -> pd.DataFrame:
    """A table by its name; pipelines: the third-party systems, rows of Table 2."""
    keys, paper = ["base", "dataset", "steps"], pd.read_csv(Path(__file__).parent / "paper" / f"{name}.csv")
    found = measured(TABLES[name], metrics, pipelines)
    found = compared(found, metrics.latency) if TABLES[name]["compares"] else found
    cited = paper[~paper.set_index(keys).index.isin(found.set_index(keys).index)]
    cited = cited.assign(method=cited["base"], dataset=None, source="cited")
    found = found.merge(paper, how="left", on=keys)
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


@dataclass(frozen=True)
class Layout:
    """A table as the paper prints it.

    groups: of columns, a measure on a test set each, in so many `steps` each; `main` ones are those of the paper.
    lines: a method each, with its `cells`, which span as many columns as their `span`.
    """

    groups: list[dict[str, Any]]
    lines: list[dict[str, Any]]


def lay_out(table: pd.DataFrame, *steps: int) -> Layout:
    """steps: those that have a column each. Without any, a line is a method in so many steps."""
    tests = table["dataset"].dropna().unique()
    groups = []
    for test, measure in itertools.product(tests, CONTENT["best"]):
        rows = where(table, dataset=test).reindex(columns=[measure, f"paper_{measure}"])
        if rows.notna().any(axis=None):
            facts = {"test": test, "measure": measure, "steps": steps or (None,)}
            facts["main"] = f"paper_{measure}" in table or "paper_fid" not in table
            groups.append({**facts, "best": _best(where(table, dataset=test), measure, steps)})
    named = table.assign(line=line_names(table, steps), family=families(table))
    lines = []
    for (family, name), rows in named.groupby(["family", "line"], sort=False):
        row = rows.iloc[0]
        facts = {"name": name, "family": family, "place": CONTENT["families"].index(family)}
        facts |= {"method": row["method"], "source": row["source"]}
        lines.append({**facts, "cells": [cell for group in groups for cell in cells(rows, group)]})
    return Layout(groups, sorted(lines, key=lambda line: line["place"]))


def line_names(table: pd.DataFrame, steps: tuple[int, ...]) -> list[str]:
    """'SPLAM (raw input), 4 steps': a method, with w where the table has several."""
    names = []
    for row in table.to_dict("records"):
        several = table.get("guidance_scale", pd.Series(dtype=float)).nunique() > 1 and pd.notna(row["guidance_scale"])
        w = f", w = {row['guidance_scale']:g}" if several else ""
        names.append(row["method"] + w + ("" if steps or pd.isna(row["steps"]) else f", {steps_text(row['steps'])}"))
    return names


def families(table: pd.DataFrame) -> pd.Series:
    """The paper's families of methods, where a table has them; what the paper has not is of its neighbours' family."""
    if "family" not in table:
        return pd.Series("", table.index)
    return table["family"].mask(table["method"].isin(FLOORS), "Floors").ffill().bfill()


def _best(rows: pd.DataFrame, measure: str, steps: tuple[int, ...]) -> dict[int | None, float]:
    """The best measured value in each column, of all but the teacher and the floors."""
    rows = rows[(rows["source"] == "measured") & ~rows["method"].isin([*FLOORS, "Teacher", SECOND_DRAW])]
    columns = {n: where(rows, steps=n) for n in steps} or {None: rows}
    pick = {"lowest": pd.Series.min, "highest": pd.Series.max, "": lambda _: None}[CONTENT["best"][measure]]
    return {n: pick(found[measure]) if measure in found else None for n, found in columns.items()}


def cells(rows: pd.DataFrame, group: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A line's cells in a group of columns: our number, the paper's, whether ours is the column's best."""
    rows, measure = rows[rows["dataset"].isna() | (rows["dataset"] == group["test"])], group["measure"]
    own = rows["steps"].isin(group["steps"]).any()
    for n in group["steps"] if own else (None,):
        found = (where(rows, steps=n) if own else rows).to_dict("records")
        row = found[0] if found else {}
        ours = written(measure, row.get(measure), row.get(f"{measure}_se"))
        elsewhere = f" in {steps_text(row['steps'])}" if len(group["steps"]) > 1 and not own and ours and pd.notna(row["steps"]) else ""
        facts = {"group": group, "span": 1 if own else len(group["steps"]), "ours": ours + elsewhere}
        paper = written("paper_", row.get(f"paper_{measure}"))
        facts["first"] = n == group["steps"][0] or not own
        yield {**facts, "paper": paper, "best": bool(ours) and row[measure] == group["best"].get(n)}


def readable(layout: Layout) -> pd.DataFrame:
    """The paper's part of a layout as text: '812.0 (43.87)', our number and the paper's."""
    main = [group for group in layout.groups if group["main"]]
    heads = [
        ", ".join([group["test"], NAMES[group["measure"]], *([steps_text(n)] if n else [])])
        for group in main for n in group["steps"]
    ]
    records = []
    for line in layout.lines:
        texts = []
        for cell in line["cells"]:
            if cell["group"]["main"]:
                text = f"**{cell['ours']}**" if cell["best"] else cell["ours"]
                texts += [f"{text} ({cell['paper']})" if cell["paper"] else text] + [""] * (cell["span"] - 1)
        records.append([line["name"], *texts])
    return pd.DataFrame(records, columns=["method", *heads])


def caption(name: str, table: pd.DataFrame, metrics: Metrics) -> str:
    """What a table shows: metrics by their full names, sample count, what ± means, and the paper's setting."""
    counts = ", ".join(f"{n:,}" for n in sorted(table["images"].dropna().unique())) if "images" in table else "no"
    shown = ["fid_name", "clip_name", *(["clip_name_beside"] if "clip_score_beside" in table else [])]
    notes = [f"{'; '.join(metrics.fact(column) for column in shown)}; {counts} images."]
    notes += ["Baselines: trailing times."] if "trailing" in metrics.fact("sampler") else []
    notes += ["± is the standard error over seeds."] if table["fid_se"].notna().any() else []
    return " ".join([*notes, f"The paper's numbers: {TABLES[name]['printed']}"])
