"""A profile's report: what its metrics give, the files under reports/PROFILE, the pages and the summary."""

import base64
import shutil
import subprocess
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from splam.config import Gate, Params
from splam.report import ablations, tables
from splam.report.claims import CLAIMS, judge
from splam.report.figures import FIGURES, forest, picture, plot, plotted_points, png
from splam.report.metrics import QUOTED, UNDISTILLED, Metrics, steps_text, where
from splam.report.rules import ONE_SEED, REAL

FOLDER = Path(__file__).parent
TEMPLATES = Environment(loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True)


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
    at = {"guidance_scale": gate.guidance_scale, "steps": steps}
    teacher = where(rows, method="Teacher", dataset="unseen", **at).dropna(subset=["fid"])
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
        elif (path := samples / f"{name}.npz").is_file():
            drawn[name] = picture(path)
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
    commit = ["git", "-C", str(FOLDER), "rev-parse", "HEAD"]
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


def notebooks_to_html(executed: Path, out: Path) -> None:
    """Write each notebook of a folder as out/STEM.html, and out/index.html that lists them.

    They open without a network: nbconvert's lab template without its scripts, formulas as MathML.
    """
    from latex2mathml.converter import convert
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        def block_math(self, body: str) -> str:
            return convert(body, display="block")

        def inline_math(self, body: str) -> str:
            return convert(body)

    def markdown2html(source: str) -> str:
        return MarkdownWithMath(renderer=Renderer(escape=False)).render(source)

    lab = (FOLDER / "notebook.html.j2").read_text()
    exporter = HTMLExporter(raw_template=lab, filters={"markdown2html": markdown2html})
    out.mkdir(parents=True, exist_ok=True)
    pages = {out / f"{path.stem}.html": path for path in sorted(executed.glob("*.ipynb"))}
    for page, path in pages.items():
        page.write_text(exporter.from_filename(str(path))[0])
    (out / "index.html").write_text(TEMPLATES.get_template("notebooks.html.j2").render(pages=pages))


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
