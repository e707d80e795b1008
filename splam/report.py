"""The report of one profile: from saved metrics to tables, figures, claims, index.html and notebook pages.

    python -m splam.report tiny [--readme README.md]

prints the headline, every verdict and where the report lies. All pages open without a network.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import html
import io
import json
import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import MathTextParser

from splam import ablations, claims, figures, tables
from splam.gate import GateResult, check_gate
from splam.params import Gate, Params

REPORT_STAGES = ("report", "html")  # dvc.lock's entries that hold hashes of the report itself
# Numbers that differ in these are never compared.
ONE_PROTOCOL = ("fid", "clip_score", "clip_score_beside", "references", "captions")
FIGURES = {
    "figure2a": (
        "Figure 2a. FID against the skipping step k",
        "Without multiple estimation (ME) FID worsens with k, LCM's more than SPLAM's; with ME SPLAM keeps its FID.",
    ),
    "figure2b": (
        "Figure 2b. FID while training",
        "SPLAM at k = 20 starts behind LCM and ends ahead of it; k = 100 with ME converges fastest.",
    ),
    "figure2c": ("Figure 2c. Consistency error δ(t, 20)", "SPLAM's error is below LCM's, by about 10 % at t = 800."),
    "figure3a": (
        "Figure 3a. Images at several guidance scales",
        "A larger w follows the prompt more closely and oversaturates.",
    ),
    "figure3b": (
        "Figure 3b. FID against CLIP score over w",
        "Raising w from 3 through 5 and 8 to 12 raises both CLIP score and FID.",
    ),
    "figure4": (
        "Figure 4. LCM beside SPLAM at 1, 2 and 4 steps",
        "SPLAM's images are clearer at every step count; in 2 steps they come near LCM's in 4.",
    ),
    "figure5": (
        "Figure 5. SPLAM beside other methods and the teacher",
        "SPLAM in 4 steps looks best among the accelerated methods.",
    ),
}


@dataclass(frozen=True)
class Metrics:
    """All saved numbers of a profile; what was not measured is an empty frame with the same columns.

    rows: the evaluations that claims, tables and figures are made from; evaluations: those of `ablation` runs too.
    protocol: of the evaluations, merged over systems; protocols: of every other file that has one, by its name.
    """

    rows: pd.DataFrame
    evaluations: pd.DataFrame
    floors: pd.DataFrame
    delta: pd.DataFrame
    latency: pd.DataFrame
    world: pd.DataFrame
    protocol: dict[str, Any]
    protocols: dict[str, dict[str, Any]]


def load_metrics(report_folder: Path) -> Metrics:
    """Read report_folder/metrics; ValueError if evaluations were made under different protocols."""
    folder = Path(report_folder) / "metrics"
    evaluations = [_read_json(path) for path in sorted((folder / "evaluate").glob("*.json"))]
    single = {name: _read_json(folder / f"{name}.json") for name in ("floors", "delta", "latency", "world")}
    protocol = merge_protocols([e.get("protocol", {}) for e in evaluations])
    rows = [row | {"clip_metric": protocol.get("clip_score")} for e in evaluations for row in e["rows"]]
    return Metrics(
        rows=_frame(_without_ablations(rows), claims.ROW_COLUMNS),
        evaluations=_frame(rows, claims.ROW_COLUMNS),
        floors=_frame(single["floors"]["rows"], claims.ROW_COLUMNS),
        delta=_frame(_without_ablations(single["delta"]["rows"]), claims.DELTA_COLUMNS),
        latency=_frame(single["latency"]["rows"], claims.LATENCY_COLUMNS),
        world=_frame(single["world"]["rows"], claims.ROW_COLUMNS),
        protocol=protocol,
        protocols={name: content["protocol"] for name, content in single.items() if content.get("protocol")},
    )


def _without_ablations(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if not row.get("ablation")]


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {"rows": []}


def _frame(rows: list[dict[str, Any]], columns: Iterable[str]) -> pd.DataFrame:
    """Records with all expected columns; absent numbers are nan, absent variants and runs are empty strings."""
    frame = pd.DataFrame(rows).reindex(columns=list(columns))
    texts = {name: "" for name in ("run", "method", "variant", "dataset") if name in frame}
    numbers = {"guidance_scale", "skip", "seed", "iteration", "steps", "images", "fid", "kid", "precision", "recall"}
    numbers |= {"fid_teacher", "clip_score", "clip_score_beside", "paired_distance", "t", "seconds_median"}
    numeric = {c: pd.to_numeric(frame[c]) for c in frame if c in numbers or c.startswith(("delta_", "x0_"))}
    objects = {c: frame[c].astype(object) for c in texts}  # a column without any text was read as numbers
    return frame.assign(**numeric, **objects).fillna(texts)


def merge_protocols(protocols: list[dict[str, Any]]) -> dict[str, Any]:
    """One protocol from those of all evaluations: differing values are listed, differing metrics are an error."""
    merged: dict[str, Any] = {}
    for key in dict.fromkeys(k for p in protocols for k in p if k != "datasets"):
        values = list(dict.fromkeys(str(p[key]) for p in protocols if key in p))
        if key in ONE_PROTOCOL and len(values) > 1:
            raise ValueError(
                f"evaluations differ in {key}: {', '.join(values)}; their numbers cannot be compared: "
                "delete metrics/evaluate files that no longer belong to the profile"
            )
        merged[key] = values[0] if len(values) == 1 else "; ".join(values)
    return merged


def write_tables(report_folder: Path, metrics: Metrics) -> dict[str, pd.DataFrame]:
    """Write tables/NAME.csv and NAME.md for Tables 1 and 2; returns them by name."""
    folder = Path(report_folder) / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    built = tables.build_tables(metrics.rows, metrics.latency, metrics.floors)
    for name, table in built.items():
        table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
        text = tables.caption(name, table, metrics.protocol)
        (folder / f"{name}.md").write_text(tables.markdown(table, text))
    return built


def write_ablations(report_folder: Path, metrics: Metrics, params: Params) -> pd.DataFrame:
    """Write ablations.csv (a header alone where the profile has none) and tables/ablations.md; returns the table."""
    folder = Path(report_folder)
    table = ablations.ablation_table(params, metrics.evaluations)
    table.to_csv(folder / "ablations.csv", index=False, float_format="%.6g")
    text = folder / "tables/ablations.md"
    text.parent.mkdir(parents=True, exist_ok=True)
    text.unlink(missing_ok=True)
    if not table.empty:
        text.write_text(ablations.markdown(table, fid_name(metrics)))
    return table


def fid_name(metrics: Metrics) -> str:
    """What the profile's FID is called: never without its features."""
    return str(metrics.protocol.get("fid", "FID (features not recorded)"))


def write_claims(report_folder: Path, metrics: Metrics) -> pd.DataFrame:
    """Write claims.csv, claims_parts.csv (every comparison behind it) and figures/claims.png; returns the claims."""
    folder = Path(report_folder)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    saved = metrics.rows, metrics.delta, metrics.latency, metrics.floors
    verdicts = claims.evaluate_claims(*saved)
    verdicts.to_csv(folder / "claims.csv", index=False, float_format="%.6g")
    claims.claim_parts(*saved).to_csv(folder / "claims_parts.csv", index=False, float_format="%.6g")
    title = "Every claim: the comparison that settles it, its interval, and where the claim says it lies (green)"
    (folder / "figures/claims.png").write_bytes(figures.png(figures.claims_forest(verdicts, title)))
    return verdicts


def plotted_figures(metrics: Metrics) -> dict[str, tuple[pd.DataFrame, Figure]]:
    """Figures 2 and 3b that there are numbers for: by name, what is plotted and the plot."""
    fid = fid_name(metrics)
    clip = str(metrics.protocol.get("clip_score", "CLIP score (model not recorded)"))
    plots = {
        "figure2a": (figures.figure2a_points(metrics.rows), lambda p: figures.figure2a(p, fid)),
        "figure2b": (figures.figure2b_points(metrics.rows), lambda p: figures.figure2b(p, fid)),
        "figure2c": (figures.figure2c_points(metrics.delta), figures.figure2c),
        "figure3b": (figures.figure3b_points(metrics.rows), lambda p: figures.figure3b(p, fid, clip)),
    }
    untrained = ("Teacher", tables.UNDISTILLED)
    students = {n: p for n, (p, _) in plots.items() if (~p["student"].isin(untrained)).any()}
    return {name: (points, plots[name][1](points)) for name, points in students.items()}


def picture_figures(samples: Path) -> dict[str, Figure]:
    """Figures 3a, 4 and 5 whose images samples/NAME.npz holds, by name."""
    makers = {
        "figure3a": lambda f: figures.figure3a(f["images"], _texts(f["prompts"]), list(f["guidance_scales"])),
        "figure4": lambda f: figures.figure4(
            f["images"],
            _texts(f["methods"]),
            [int(n) for n in f["steps"]],
            _texts(f["prompts"]),
            f["teacher"],
            int(f["teacher_steps"]),
        ),
        "figure5": lambda f: figures.figure5(f["images"], _texts(f["columns"]), _texts(f["prompts"])),
    }
    made = {}
    for name, make in makers.items():
        path = Path(samples) / f"{name}.npz"
        if path.is_file():
            with np.load(path, allow_pickle=False) as file:
                made[name] = make(file)
    return made


def _texts(array: np.ndarray) -> list[str]:
    return [str(text) for text in array]


def write_figures(report_folder: Path, metrics: Metrics, samples: Path) -> list[str]:
    """Write figures/NAME.png, and NAME.csv of plotted ones; a figure without its data is removed. Returns names."""
    folder = Path(report_folder) / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    plotted, pictures = plotted_figures(metrics), picture_figures(samples)
    for name, (points, _) in plotted.items():
        points.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
    drawn = {name: figure for name, (_, figure) in plotted.items()} | pictures
    for name in FIGURES:
        if name in drawn:
            (folder / f"{name}.png").write_bytes(figures.png(drawn[name]))
        else:
            for suffix in ("png", "csv"):
                (folder / f"{name}.{suffix}").unlink(missing_ok=True)
    return [name for name in FIGURES if name in drawn]


def code_hash(root: Path) -> str:
    """sha256 over splam/**/*.py and notebooks/**/*.ipynb, names and contents; the stages themselves are in dvc.lock."""
    digest = hashlib.sha256()
    found = [*root.glob("splam/**/*.py"), *root.glob("notebooks/**/*.ipynb")]
    for path in sorted(p for p in found if ".ipynb_checkpoints" not in p.parts):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def lock_hash(lock: Path) -> str:
    """sha256 of dvc.lock without the stages that make the report, whose hashes depend on it."""
    stages = (yaml.safe_load(lock.read_text()) or {}).get("stages", {})
    kept = {name: stage for name, stage in stages.items() if name.split("@")[0] not in REPORT_STAGES}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


def provenance(root: Path) -> dict[str, str]:
    """What the report was made from, as hashes: code, parameters, and data and models (dvc.lock)."""
    parameters, lock = root / "params.yaml", root / "dvc.lock"
    return {
        "code_hash": code_hash(root),
        "params_hash": hashlib.sha256(parameters.read_bytes()).hexdigest()
        if parameters.is_file()
        else "no params.yaml",
        "lock_hash": lock_hash(lock) if lock.is_file() else "no dvc.lock",
    }


def params_section(root: Path, section: str) -> dict[str, Any]:
    """One section of params.yaml as it is written, or an empty dict."""
    path = root / "params.yaml"
    content = yaml.safe_load(path.read_text()) if path.is_file() else {}
    return content.get(section) or {}


def data_kind(root: Path) -> str:
    """The `data.kind` of params.yaml, or an empty string."""
    return str(params_section(root, "data").get("kind", ""))


def gate_result(metrics: Metrics, root: Path) -> GateResult:
    """The verdict on evaluation.gate of params.yaml."""
    settings = params_section(root, "evaluation").get("gate")
    return check_gate(metrics.rows, metrics.protocol, Gate.model_validate(settings) if settings else None)


def scale_line(metrics: Metrics, profile: str, kind: str) -> str:
    """What the numbers are, in a few words: 'tiny: emoji, FID (EfficientNet-Lite0), 1,000 images'."""
    counts = metrics.rows.loc[metrics.rows["dataset"] == "unseen", "images"].dropna()
    images = f"{int(counts.max()):,} images" if len(counts) else "nothing evaluated"
    return f"{profile}: " + ", ".join(t for t in (kind, str(metrics.protocol.get("fid", "")), images) if t)


def scale_warning(metrics: Metrics) -> str:
    """Whether the numbers may be read against the paper's; empty for Inception FID."""
    name = str(metrics.protocol.get("fid", ""))
    if "Inception" in name:
        return ""
    return (
        f"These numbers are {name or 'of an unrecorded kind'}, on data of this profile: they are not on the scale of "
        "the paper's, which are Inception FIDs of Stable Diffusion. Compare order and ratios, not values."
    )


def verdict_counts(verdicts: pd.DataFrame) -> pd.DataFrame:
    """How many claims got which verdict: a row for each SPLAM variant, counting claims that are not about one too."""
    names = [v for v in dict.fromkeys(verdicts["variant"]) if v] or [""]
    groups = {name: verdicts[verdicts["variant"].isin([name, ""])] for name in names}
    counts = {f"SPLAM ({n})" if n else "SPLAM": g["verdict"].value_counts() for n, g in groups.items()}
    table = pd.DataFrame(counts).T.reindex(columns=list(claims.VERDICTS)).fillna(0).astype(int)
    return table.rename_axis("tested for").reset_index()


def read_claims(report_folder: Path, name: str = "claims") -> pd.DataFrame:
    """claims.csv, or claims_parts.csv, as written."""
    texts = dict.fromkeys(("variant", "values", "to_teacher_verdict", "to_teacher_measured"), str)
    path = Path(report_folder) / f"{name}.csv"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run the report stage (dvc repro report) first")
    return pd.read_csv(path, dtype=texts, keep_default_na=True).fillna(dict.fromkeys(texts, ""))


def _data_uri(figure: Figure) -> str:
    return "data:image/png;base64," + base64.b64encode(figures.small_png(figure)).decode()


def claim_views(report_folder: Path, most: int = 24) -> list[dict[str, Any]]:
    """For the page: each claim with its rule's verdicts and a picture of its comparisons (the worst `most` of them)."""
    verdicts, parts = (read_claims(report_folder), read_claims(report_folder, "claims_parts"))
    views = []
    for claim in claims.CLAIMS:
        mine = parts[(parts["id"] == claim.id) & (parts["fid_of"] == claims.REAL) & parts["estimate"].notna()]
        excess = np.maximum(mine["accept_low"] - mine["estimate"], mine["estimate"] - mine["accept_high"])
        shown = mine.loc[excess.sort_values(ascending=False).index[:most].sort_values()]
        views.append(
            {
                "id": claim.id,
                "text": claim.text,
                "where": claim.where,
                "rule": " ".join((claim.test.__doc__ or "").split()),
                "rows": verdicts[verdicts["id"] == claim.id].to_dict("records"),
                "picture": _data_uri(figures.claims_forest(shown)) if len(shown) else "",
                "left_out": len(mine) - len(shown),
            }
        )
    return views


def ablation_views(report_folder: Path) -> list[dict[str, Any]]:
    """For the page: each study of ablations.csv with its table and a picture of its ratios."""
    path = Path(report_folder) / "ablations.csv"
    texts = dict.fromkeys(("factor", "value", "reference_value", "values", "teacher_values"), str)
    numbers = ("fid", "fid_teacher", "ratio", "low", "high")
    missing = {column: [""] for column in ablations.COLUMNS if column.endswith(numbers)}  # a factor's "none" is a value
    table = pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=missing)
    return [
        {
            "name": name,
            "reference": rows["reference"].iloc[0],
            "best": ablations.best(rows),
            "grid": _grid(ablations.readable(rows)),
            "picture": _data_uri(figures.claims_forest(ablations.forest(rows))),
        }
        for name, rows in table.groupby("study", sort=False)
    ]


def figure_views(report_folder: Path) -> list[dict[str, Any]]:
    """For the page: each figure's title, the paper's finding, and which of its files there are."""
    folder = Path(report_folder) / "figures"
    return [
        {
            "name": name,
            "title": title,
            "paper": paper,
            "png": (folder / f"{name}.png").is_file(),
            "csv": (folder / f"{name}.csv").is_file(),
        }
        for name, (title, paper) in FIGURES.items()
    ]


def table_views(built: dict[str, pd.DataFrame], protocol: dict[str, Any]) -> list[dict[str, Any]]:
    """For the page: each table's caption, its readable form and the source of each row."""
    return [
        {
            "name": name,
            "title": tables.TITLES[name],
            "caption": tables.caption(name, table, protocol).split(". ", 2)[-1],
            "columns": list(tables.readable(table)),
            "rows": tables.readable(table).to_numpy().tolist(),
            "sources": [_row_kind(*pair) for pair in zip(table["method"], table["source"], strict=True)],
        }
        for name, table in built.items()
    ]


def _row_kind(method: str, source: str) -> str:
    """A table row's look: ours, cited, floor, missing or measured."""
    if method in tables.FLOORS:
        return "floor"
    if source != "measured":
        return "cited" if source == "cited" else "missing"
    return "ours" if method.startswith("SPLAM") else "measured"


def _grid(frame: pd.DataFrame) -> dict[str, Any]:
    return {"columns": list(frame), "rows": frame.to_numpy().tolist()}


def write_index(report_folder: Path, profile: str, root: Path = Path(".")) -> Path:
    """Write index.html over all that write_tables, write_claims and write_figures wrote; returns its path."""
    import jinja2

    folder = Path(report_folder)
    metrics = load_metrics(folder)
    built = tables.build_tables(metrics.rows, metrics.latency, metrics.floors)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(files("splam.assets").joinpath("report.html.j2").read_text())
    page = template.render(
        profile=profile,
        scale=scale_line(metrics, profile, data_kind(root)),
        warning=scale_warning(metrics),
        gate=gate_result(metrics, root),
        provenance=provenance(root),
        protocols={"evaluation": metrics.protocol, **metrics.protocols},
        headline=_grid(tables.headline(built["table1"])),
        counts=_grid(verdict_counts(read_claims(folder))),
        tables=table_views(built, metrics.protocol),
        figures=figure_views(folder),
        claims=claim_views(folder),
        ablations=ablation_views(folder),
        world=_grid(tables.world_card(metrics.world, metrics.floors)) if len(metrics.world) else None,
        quality=_grid(tables.teacher_quality(metrics.world, metrics.floors)) if len(metrics.world) else None,
        files=sorted(p.relative_to(folder).as_posix() for p in (folder / "metrics").rglob("*.json")),
    )
    (folder / "index.html").write_text(page)
    return folder / "index.html"


def summary_text(report_folder: Path, root: Path = Path(".")) -> str:
    """The report in a terminal: headline, the gate, a line for each verdict, and the report's path."""
    folder = Path(report_folder)
    metrics = load_metrics(folder)
    table = tables.build_tables(metrics.rows, metrics.latency, metrics.floors)["table1"]
    verdicts = read_claims(folder)
    lines = [scale_line(metrics, folder.name, ""), scale_warning(metrics), str(gate_result(metrics, root)), ""]
    lines += ["SPLAM against LCM (fix w), unseen set, w = 8, k = 20:"]
    lines += [tables.headline(table).to_string(index=False), ""]
    for row in verdicts.to_dict("records"):
        about = f" ({row['variant']})" if row["variant"] else ""
        lines.append(f"{row['id']:>3}  {row['verdict']:<21} {textwrap.shorten(row['claim'], 88)}{about}")
    counts = verdicts["verdict"].value_counts().reindex(list(claims.VERDICTS)).dropna().astype(int)
    lines += ["", ", ".join(f"{n} {verdict}" for verdict, n in counts.items())]
    return "\n".join([*lines, f"report: {folder / 'index.html'}"])


README_START, README_END = "<!-- results: start -->", "<!-- results: end -->"


def readme_block(report_folder: Path) -> str:
    """The results as README shows them: measured rows of Tables 1 and 2a, every verdict, what ablations gave."""
    folder = Path(report_folder)
    metrics = load_metrics(folder)
    built = tables.build_tables(metrics.rows, metrics.latency, metrics.floors)
    parts = [f"{scale_line(metrics, folder.name, '')}. {scale_warning(metrics)} {tables.PAIRED}"]
    for name in ("table2a", "table1"):
        table = built[name][built[name]["source"] == "measured"]
        table = table[table["dataset"] == "unseen"]
        parts += [f"**{tables.TITLES[name]}, unseen combinations**", tables.readable(table).to_markdown(index=False)]
    verdicts = read_claims(folder)
    shown = {name: verdicts[name] for name in ("id", "claim", "variant")}
    shown["seeds"] = verdicts["seeds"].map(tables.number)
    shown |= {"verdict": verdicts["verdict"], "by FID to teacher": verdicts["to_teacher_verdict"]}
    shown["measured"] = [textwrap.shorten(text, 160, placeholder=" …") for text in verdicts["measured"]]
    parts += ["**Verdicts on the paper's claims**", pd.DataFrame(shown).to_markdown(index=False)]
    studies = [f"- {view['name']} (reference {view['reference']}): {view['best']}" for view in ablation_views(folder)]
    return "\n\n".join([*parts, *(["**Ablations**", "\n".join(studies)] if studies else [])])


def update_readme(readme: Path, report_folder: Path) -> None:
    """Write readme_block between the two markers of a README. Raises ValueError where there are none."""
    text = readme.read_text()
    if README_START not in text or README_END not in text:
        raise ValueError(f"{readme} has no lines {README_START} and {README_END} to write between")
    head, rest = text.split(README_START, 1)
    tail = rest.split(README_END, 1)[1]
    readme.write_text(f"{head}{README_START}\n\n{readme_block(report_folder)}\n\n{README_END}{tail}")


PAGE_TEMPLATE = """{% extends 'lab/index.html.j2' %}
{% block html_head_js %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block jupyter_widgets %}{% endblock %}
"""
LOADS = re.compile(
    r"""<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)\s*=\s*["']?\s*(?:https?:)?//[^"'\s>]+"""
    r"""|@import\s+(?:url\()?["']?(?:https?:)?//[^"')\s]+|url\(\s*["']?https?://[^"')\s]+""",
    re.IGNORECASE,
)


def loads_from_network(page: str) -> list[str]:
    """What a page would fetch when opened: remote scripts, styles, images and fonts (links do not count)."""
    return [match.group(0) for match in LOADS.finditer(page)]


def notebooks_to_html(executed: list[Path], out: Path) -> list[Path]:
    """Write each executed notebook as out/STEM.html, and out/index.html that lists them; returns the pages.

    The lab template without its scripts; formulas become pictures. ValueError if a page would use the network.
    """
    import nbformat
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(raw_template=PAGE_TEMPLATE)
    out.mkdir(parents=True, exist_ok=True)
    pages = []
    for path in sorted(executed):
        notebook = nbformat.read(path, as_version=4)
        for index, cell in enumerate(notebook.cells):
            cell.id = f"cell-{index}"
            if cell.cell_type == "markdown":
                cell.source = formulas_to_pictures(cell.source)
        body, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": path.stem}})
        if found := loads_from_network(body):
            raise ValueError(f"{path} as HTML would load {found[0]}: keep notebooks free of remote content")
        pages.append(out / f"{path.stem}.html")
        pages[-1].write_text(body)
    links = "\n".join(f'<li><a href="{html.escape(p.name)}">{html.escape(p.stem)}</a></li>' for p in pages)
    style = "body{font:16px system-ui,sans-serif;max-width:44rem;margin:3rem auto;line-height:1.7}"
    head = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Notebooks</title><style>{style}</style>'
    )
    body = (
        f'</head>\n<body><h1>Executed notebooks</h1>\n<ul>\n{links}\n</ul>\n<p><a href="../index.html">Report</a></p>'
    )
    (out / "index.html").write_text(f"{head}{body}</body></html>\n")
    return pages


def formulas_to_pictures(text: str) -> str:
    """Markdown with $...$ and $$...$$ outside code replaced by SVG; what mathtext cannot set stays as code."""
    code_or_formula = r"(```.*?```|`[^`\n]*`)|\$\$(.+?)\$\$|(?<![\\$])\$([^$\n]+?)\$"

    def replace(match: re.Match[str]) -> str:
        code, display, inline = match.groups()
        if code:
            return code
        picture = formula_svg(" ".join((display or inline).split()))
        return f'<p style="text-align:center">{picture}</p>' if display else picture

    return re.sub(code_or_formula, replace, text, flags=re.DOTALL)


def formula_svg(formula: str, size: float = 11.0) -> str:
    """A LaTeX formula as an <img> with inlined SVG on the text's baseline, or as <code> where mathtext fails."""
    plain = re.sub(r"\\text\b", r"\\mathrm", formula).replace(r"\tfrac", r"\frac").replace(r"\lVert", r"\Vert")
    tex = f"${plain.replace(chr(92) + 'rVert', chr(92) + 'Vert')}$"
    font = FontProperties(size=size, math_fontfamily="cm")
    try:
        width, height, depth, _, _ = MathTextParser("path").parse(tex, dpi=72, prop=font)
    except ValueError:
        return f"<code>{html.escape(formula)}</code>"
    figure = Figure(figsize=((width + 1) / 72, (height + 2) / 72))
    figure.patch.set_alpha(0)
    figure.text(0, (depth + 1) / (height + 2), tex, fontproperties=font, va="baseline")
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "splam", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    uri = "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
    style = f"display:inline;max-width:none;vertical-align:{-(depth + 1):.2f}pt"
    return f'<img src="{uri}" alt="{html.escape(formula)}" style="{style}">'


def main() -> None:
    """Print the summary of a profile's report, or write its results into a README."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("profile")
    parser.add_argument("--reports", type=Path, default=Path("reports"))
    parser.add_argument("--readme", type=Path, help="write the results between the markers of this file")
    options = parser.parse_args()
    if options.readme:
        update_readme(options.readme, options.reports / options.profile)
    print(summary_text(options.reports / options.profile))


if __name__ == "__main__":
    main()
