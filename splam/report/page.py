"""A profile's report: what its metrics give, the files under reports/PROFILE, the pages and the summary."""

import textwrap
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from splam.config import Gate, Params
from splam.report import ablations, made, rules, tables
from splam.report.claims import CLAIMS, judge
from splam.report.figures import FIGURES, ends, picture, plot, plotted_points, save, sheet
from splam.report.metrics import QUOTED, UNDISTILLED, Metrics, steps_text, where
from splam.report.rules import CANNOT_TELL, FAILS, FEW_SEEDS, HOLDS, MISSING, NOISE, REAL, REPORTED

FOLDER = Path(__file__).parent
TEMPLATES = Environment(loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
ALL, SOME, NONE = "as claimed", "partly as claimed", "not as claimed"  # directions of a single seed
GLYPHS = {HOLDS: "✓", FAILS: "✕", NOISE: "≈", CANNOT_TELL: "?", REPORTED: "·", MISSING: "–"}
GLYPHS |= {ALL: "✓", SOME: "◐", NONE: "✕"}
FINDINGS = {  # what is said of a measure in some steps, of SPLAM and of LCM
    "gap_closed": "In {} SPLAM closes {} of the gap between the undistilled network and the teacher, LCM {}.",
    "fid": "In {} SPLAM has an FID of {}, LCM of {}.",
}


@dataclass(frozen=True)
class Report:
    """All that a report shows."""

    params: Params
    metrics: Metrics
    gate: tuple[str, str]
    tables: dict[str, pd.DataFrame]
    verdicts: pd.DataFrame
    parts: pd.DataFrame
    ablations: pd.DataFrame
    points: dict[str, pd.DataFrame]


def build(params: Params, metrics: Metrics) -> Report:
    """The report of a profile's metrics. Raises ValueError where a row of it would be of two runs."""
    gate = check_gate(metrics.rows, params.evaluation.gate, params.evaluation.teacher_steps)
    built = {name: tables.build_table(name, metrics, params.pipelines) for name in tables.TABLES}
    studies = ablations.ablation_table(params, metrics.evaluations)
    return Report(params, metrics, gate, built, *judge(metrics), studies, plotted_points(metrics))


def check_gate(rows: pd.DataFrame, gate: Gate | None, steps: int) -> tuple[str, str]:
    """Whether students' numbers may be believed: "passed", "not passed" or "not applicable", and a sentence why.

    The teacher must give the FID that is known of it, in `steps` of evaluation.teacher_steps: an evaluation that is off
    by anything (captions, crop, resizing, features) is off for the teacher too.
    """
    if gate is None:
        return "not applicable", "no number of this teacher's is known that this profile could be held to"
    teacher = where(rows, method="Teacher", dataset="unseen", guidance_scale=gate.guidance_scale, steps=steps)
    expected = f"{gate.fid:g} within {gate.tolerance:g} at w = {gate.guidance_scale:g}, {steps} steps"
    if teacher.empty:
        return "not passed", f"its teacher has not been measured yet ({expected}); believe no student's FID"
    row = teacher.iloc[0]
    others = {
        f"the FID is {row['fid_name'] or 'of unrecorded features'}": "Inception" not in row["fid_name"],
        f"the test set is {row['protocol'] or 'not recorded'}": row["protocol"] not in gate.sets,
        f"{row['images']:,.0f} images were drawn, not {gate.images:,}": row["images"] != gate.images,
    }
    if other := next((text for text, differs in others.items() if differs), ""):
        return "not applicable", f"{other}, which {expected} does not hold for"
    found = f"the teacher's FID is {row['fid']:.2f}, expected is {expected}, on {row['protocol']}"
    if abs(row["fid"] - gate.fid) <= gate.tolerance:
        return "passed", found
    return "not passed", f"{found}; find out why before believing any student's FID"


def write_files(report: Report, folder: Path, samples: Path) -> dict[str, dict[str, Any]]:
    """Write tables, verdicts and figures; returns the figures that there are numbers or images for, with their facts.

    The files leave out this machine's latencies, which differ in every run; the page shows them.
    """
    for kind in ("tables", "figures"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    frames, drawn = {"claims": report.verdicts, "claims_parts": report.parts, "ablations": report.ablations}, {}
    for name, table in report.tables.items():
        frames[f"tables/{name}"] = table = table.drop(columns="latency_s", errors="ignore")
        title = f"{tables.TABLES[name]['title']}. {tables.caption(name, table, report.metrics)}"
        (folder / f"tables/{name}.md").write_text(f"{title}\n\n{tables.markdown(tables.readable(table))}\n")
    for name in FIGURES:
        file = folder / f"figures/{name}.png"
        if name in report.points:
            frames[f"figures/{name}"] = report.points[name]
            save(plot(name, report.points[name], report.metrics), file)
            drawn[name] = {"ours": ends(name, report.points[name])}
        elif (path := samples / f"{name}.npz").is_file():
            with np.load(path) as shown:
                save(picture(**shown), file)
                drawn[name] = sheet(shown["images"], shown["columns"], shown["prompts"], file.with_suffix(".webp"))
    for name, frame in frames.items():
        tables.write_csv(frame, folder / f"{name}.csv")
    return drawn


def write_page(report: Report, folder: Path, drawn: dict[str, dict[str, Any]], pipeline: str = "dvc.yaml") -> None:
    """Write index.html beside what write_files wrote and returned, with the stages of a dvc.yaml."""
    quoted = report.metrics.evaluations.groupby("dataset")[list(QUOTED)]
    values = report.params.model_dump(mode="json")
    content = {"report": report, "drawn": drawn, "finding": finding(report), "tally": tally(report.verdicts)}
    content |= {"claims": CLAIMS, "marks": marks(report.verdicts, report.parts), "glyphs": GLYPHS, "figures": FIGURES}
    content |= {"made": made, "rules": rules, "stages": made.stages(pipeline), "executed": pipeline == "dvc.yaml"}
    content |= {"protocol": quoted.agg(lambda values: "; ".join(sorted(set(values) - {""}))).to_dict()}
    content |= {"parameters": yaml.safe_dump(values, sort_keys=False, default_flow_style=None)}
    helpers = {"places": places, "tables": tables, "where": where, "steps_text": steps_text}
    (folder / "index.html").write_text(TEMPLATES.get_template("report.html.j2").render(content | helpers))


def marks(verdicts: pd.DataFrame, parts: pd.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """Each claim's verdicts with their `state`, a key of GLYPHS: of too few seeds, how many comparisons go its way."""
    found = {name: [] for name in CLAIMS}
    for row in verdicts.to_dict("records"):
        own = where(parts, id=row["id"], variant=(row["variant"], ""), fid_of=REAL).dropna(subset=["estimate"])
        agree = (own["excess"] < 0).mean()
        direction = ALL if agree == 1 else NONE if agree == 0 else SOME
        found[row["id"]].append({**row, "state": direction if row["verdict"] == FEW_SEEDS else row["verdict"]})
    return found


def places(parts: pd.DataFrame) -> list[dict[str, Any]]:
    """Measured parts with their text, their state, and where on a scale from 0 to 100 their numbers and 0 lie.

    Parts of one unit share a scale. `at`: of estimate, low, high, accept_low, accept_high and zero.
    """
    columns, found = ["estimate", "low", "high", "accept_low", "accept_high"], []
    for unit, rows in parts[parts["estimate"].notna()].groupby("unit", sort=False):
        numbers = rows[columns].astype(float).assign(zero=0.0)
        known = numbers.to_numpy()[np.isfinite(numbers.to_numpy())]
        start, width = known.min() - 0.1 * (np.ptp(known) or 1.0), 1.2 * (np.ptp(known) or 1.0)
        at = ((numbers - start) / width * 100).clip(0, 100).round(1)
        at = at.fillna({"low": at["estimate"], "high": at["estimate"]})
        for row, where_drawn in zip(rows.to_dict("records"), at.to_dict("records"), strict=True):
            verdict = row["alone"] if "study" in row else row["verdict"]
            state = verdict if verdict != FEW_SEEDS else ALL if row["excess"] < 0 else NONE
            said = row["verdict"] if "study" in row else state  # a study claims nothing: better, not holds
            said += f", alone: {row['alone']}" if row["verdict"] == CANNOT_TELL else ""
            bounds = (row["low"], row["high"]) if row["low"] < row["high"] else ()
            text = rules.number(unit, row["estimate"], *bounds)
            found.append({**row, "at": where_drawn, "state": state, "said": said, "text": text})
    return found


def notebooks_to_html(executed: Path, out: Path) -> None:
    """Write each notebook of a folder as out/STEM.html, and out/index.html that lists them.

    They open without a network: nbconvert's lab template without what it loads from one, formulas as MathML.
    """
    from latex2mathml.converter import convert
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    renderer = IPythonRenderer(escape=False)
    renderer.block_math, renderer.inline_math = partial(convert, display="block"), convert
    filters = {"markdown2html": MarkdownWithMath(renderer=renderer).render}
    exporter = HTMLExporter(template_file=str(FOLDER / "notebook.html.j2"), filters=filters)
    out.mkdir(parents=True, exist_ok=True)
    done = [path for path in sorted(executed.glob("*.ipynb")) if not path.match("*.failed.ipynb")]
    for path in done:
        (out / f"{path.stem}.html").write_text(exporter.from_filename(str(path))[0])
    (out / "index.html").write_text(TEMPLATES.get_template("notebooks.html.j2").render(notebooks=done))


def glance(report: Report) -> pd.DataFrame:
    """FID and gap closed of the pictures' students and what they are held to, unseen set: (system, steps) x measure."""
    pictures = report.params.pictures
    w = report.params.runs[pictures.splam].guidance_scale
    rows = where(report.metrics.rows, dataset="unseen", final=True, guidance_scale=w)
    picked = {name: where(rows, method=name) for name in (UNDISTILLED, "DDIM", "Teacher")}
    picked |= {"LCM": where(rows, run=pictures.lcm), "SPLAM": where(rows, run=pictures.splam)}
    return pd.concat({name: found.groupby("steps")[["fid", "gap_closed"]].mean() for name, found in picked.items()})


def finding(report: Report) -> tuple[str, str]:
    """What was found in a sentence, and of which students: SPLAM's means over seeds beside LCM's."""
    rows = where(report.metrics.rows, dataset="unseen", final=True)
    sides = [where(rows, run=run) for run in (report.params.pictures.splam, report.params.pictures.lcm)]
    for measure, sentence in FINDINGS.items():
        ours, theirs = (side.groupby("steps")[measure].mean().dropna() for side in sides)
        if len(steps := ours.index.intersection(theirs.index)):
            values = (listed([tables.written(measure, value) for value in means[steps]]) for means in (ours, theirs))
            said = sentence.format(listed([f"{n:g}" for n in steps[:-1]] + [steps_text(steps[-1])]), *values)
            return said, f"{' and '.join(map(_setting, sides))}."
    return "Nothing has been measured yet.", ""


def _setting(side: pd.DataFrame) -> str:
    """'SPLAM (k = 100 with ME, scaled input, w = 3)'."""
    row = side.iloc[0]
    path = f"k = {row['skip']:g}" + " with ME" * bool(row["multiple_estimation"] and row["skip"] > 20)
    w = f"w = {row['guidance_scale']:g}"
    return f"{row['method'].removesuffix(' (fix w)')} ({', '.join(filter(None, [path, row['variant'], w]))})"


def listed(words: list[str]) -> str:
    """'1, 2 and 4 steps'."""
    return " and ".join([", ".join(words[:-1])] * (len(words) > 1) + words[-1:])


def tally(verdicts: pd.DataFrame) -> str:
    """How many claims have each verdict, SPLAM with the scaled input; empty where most have none."""
    ours = verdicts[verdicts["variant"].isin(["", "scaled input"])].groupby("id")["verdict"].first()
    if ours.isin([FEW_SEEDS, MISSING]).mean() > 0.5:
        return ""
    said = ", ".join(f"{verdict} ({count})" for verdict, count in ours.value_counts().sort_index().items())
    return f"Verdicts on the paper's {len(ours)} claims, with the scaled input: {said}."


def summary(report: Report) -> str:
    """The report in a terminal: the students at a glance, the gate, and a line for each claim with a verdict."""
    lines = [f"{report.params.profile}: {report.metrics.fact('fid_name')}", "gate {}: {}".format(*report.gate), ""]
    seen = glance(report).rename(columns=tables.NAMES).round(2).unstack().dropna(axis=1, how="all")
    lines += ["Unseen captions, by the number of steps:", seen.to_string(na_rep="", float_format="{:g}".format)]
    lines += ["", *finding(report), ""]
    for row in report.verdicts[~report.verdicts["verdict"].isin([FEW_SEEDS, MISSING])].to_dict("records"):
        about = f" ({row['variant']})" if row["variant"] else ""
        lines.append(f"{row['id']:>3}  {row['verdict']:<21} {textwrap.shorten(row['claim'], 88)}{about}")
    return "\n".join(lines)
