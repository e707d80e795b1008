"""A profile's report: what its metrics give, the files under reports/PROFILE, the page and the summary."""

import base64
import shutil
import subprocess
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from splam.config import Params
from splam.report import ablations, tables
from splam.report.claims import CLAIMS, judge
from splam.report.figures import FIGURES, forest, plot, plotted_points, png
from splam.report.gate import check_gate
from splam.report.html import TEMPLATES
from splam.report.metrics import QUOTED, UNDISTILLED, Metrics, steps_text, where
from splam.report.pictures import picture
from splam.report.rules import ONE_SEED, REAL


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


def write_files(report: Report, folder: Path, samples: Path) -> list[str]:
    """Write tables, verdicts and figures; returns the names of the figures that there are numbers or images for.

    The files leave out this machine's latencies, which differ in every run; the page shows them.
    """
    frames = {"claims": report.verdicts, "claims_parts": report.parts, "ablations": report.ablations}
    texts = {"ablations": ablations.markdown(report.ablations)}
    for name, table in report.tables.items():
        frames[f"tables/{name}"] = table = table.drop(columns="latency_s", errors="ignore")
        title = f"{tables.TABLES[name]['title']}. {tables.caption(name, table, report.metrics)}"
        texts[name] = f"{title}\n\n{tables.readable(table).to_markdown(index=False, disable_numparse=True)}\n"
    title = "Every claim: the comparison that settles it, its interval, and where the claim says it lies (green)"
    drawn = {"claims": forest(report.verdicts, title)}
    for name in FIGURES:
        if name in report.points:
            frames[f"figures/{name}"] = report.points[name]
            drawn[name] = plot(name, report.points[name], report.metrics)
        elif (samples / f"{name}.npz").is_file():
            drawn[name] = picture(name, samples)
    for kind in ("tables", "figures"):
        shutil.rmtree(folder / kind, ignore_errors=True)  # a figure of other metrics must not stay
        (folder / kind).mkdir(parents=True)
    for name, frame in frames.items():
        tables.write_csv(frame, folder / f"{name}.csv")
    for name, text in texts.items():
        (folder / f"tables/{name}.md").write_text(text)
    for name, figure in drawn.items():
        (folder / f"figures/{name}.png").write_bytes(png(figure))
    return [name for name in FIGURES if name in drawn]


def write_page(report: Report, folder: Path, drawn: list[str]) -> Path:
    """Write index.html beside what write_files wrote; returns its path. drawn: the figures that there are."""
    quoted = report.metrics.evaluations.groupby("dataset")[list(QUOTED)]
    commit = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    page = TEMPLATES.get_template("report.html.j2").render(
        report=report,
        drawn=drawn,
        claims=CLAIMS,
        figures=FIGURES,
        tables=tables,
        ablations=ablations,
        where=where,
        steps_text=steps_text,
        protocol=quoted.agg(lambda values: "; ".join(sorted(set(values) - {""}))).T.reset_index(names=""),
        picture_of=lambda rows: base64.b64encode(png(forest(rows), colours=32)).decode(),
        real=REAL,
        commit=subprocess.run(commit, capture_output=True, text=True).stdout.strip(),
        parameters=yaml.safe_dump(report.params.model_dump(mode="json"), sort_keys=False, default_flow_style=None),
    )
    (folder / "index.html").write_text(page)
    return folder / "index.html"


def glance(report: Report) -> tuple[pd.DataFrame, str]:
    """The two students of the pictures beside their teacher, on the unseen set, and a sentence on them.

    The frame has FID and, in brackets, the gap closed: a row for each system, a column for each number of steps.
    """
    pictures = report.params.pictures
    w = report.params.runs[pictures.splam].guidance_scale
    rows = where(report.metrics.rows, dataset="unseen", final=True, guidance_scale=w)
    picked = {name: {"method": name} for name in (UNDISTILLED, "DDIM", "Teacher")}
    picked |= {"LCM": {"run": pictures.lcm}, "SPLAM": {"run": pictures.splam}}
    found = {
        name: where(rows, **columns).groupby("steps")[["fid", "gap_closed"]].mean() for name, columns in picked.items()
    }
    gaps = pd.DataFrame({name: found[name]["gap_closed"] for name in ("LCM", "SPLAM")}).dropna()
    texts = {}
    for name, frame in found.items():
        shown = frame["gap_closed"].map(lambda gap: f" ({gap:.0%})" if gap else "", na_action="ignore").fillna("")
        texts[name] = frame["fid"].map(lambda fid: tables.written("fid", fid)) + shown
    table = pd.DataFrame(texts).T.rename(columns=steps_text).fillna("")
    said = [f"{gap.LCM:.0%} and {gap.SPLAM:.0%} in {steps_text(gap.Index)}" for gap in gaps.itertuples()]
    sentence = f"Of the gap between the undistilled network and its teacher at w = {w:g}, LCM and SPLAM close "
    return table, sentence + (", ".join(said) or "an unknown part: it was not measured") + "."


def summary(report: Report) -> str:
    """The report in a terminal: the students at a glance, the gate, and a line for each verdict over several seeds."""
    lines = [f"{report.params.profile}: {report.metrics.fact('fid_name')}", "gate {}: {}".format(*report.gate), ""]
    table, sentence = glance(report)
    lines += ["FID, and how much of the gap to the teacher is closed:", table.to_string(), "", sentence, ""]
    for row in report.verdicts[report.verdicts["verdict"] != ONE_SEED].to_dict("records"):
        about = f" ({row['variant']})" if row["variant"] else ""
        lines.append(f"{row['id']:>3}  {row['verdict']:<21} {textwrap.shorten(row['claim'], 88)}{about}")
    return "\n".join(lines)
