"""The report as a whole: complete, the same bytes twice, readable offline, and unharmed by what is missing."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from synthetic_metrics import PROTOCOL, write_metrics, write_samples

from splam import claims, report
from splam.params import Params, compose

FIGURE_NAMES = ["figure2a", "figure2b", "figure2c", "figure3a", "figure3b", "figure4", "figure5"]


def write_report(folder: Path, samples: Path, root: Path) -> None:
    """All of the report, as notebooks/60_report.ipynb writes it."""
    metrics = report.load_metrics(folder)
    report.write_tables(folder, metrics)
    report.write_claims(folder, metrics)
    report.write_ablations(folder, metrics, Params.model_validate(compose("tiny")))
    report.write_figures(folder, metrics, samples)
    report.write_index(folder, "tiny", root)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A repository's files that provenance reads."""
    root = tmp_path_factory.mktemp("root")
    (root / "splam").mkdir()
    (root / "splam/code.py").write_text("x = 1\n")
    (root / "params.yaml").write_text("data: {kind: emoji}\n")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory, root) -> Path:
    folder = write_metrics(tmp_path_factory.mktemp("reports") / "tiny", seeds=3)
    write_report(folder, write_samples(tmp_path_factory.mktemp("samples")), root)
    return folder


def hashes(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_everything_is_written(folder):
    assert sorted(p.stem for p in (folder / "tables").glob("*.csv")) == ["table1", "table2a", "table2b", "table2c"]
    assert sorted(p.stem for p in (folder / "tables").glob("*.md")) == ["table1", "table2a", "table2b", "table2c"]
    assert sorted(p.stem for p in (folder / "figures").glob("*.png")) == ["claims", *FIGURE_NAMES]
    plotted = sorted(p.stem for p in (folder / "figures").glob("*.csv"))
    assert plotted == ["figure2a", "figure2b", "figure2c", "figure3b"]
    claims = pd.read_csv(folder / "claims.csv")
    assert set(claims["id"]) == {f"C{i}" for i in range(1, 19)}
    assert {"id", "variant", "claim", "where", "measured", "estimate", "low", "high", "seeds", "verdict"} <= set(claims)


def test_the_page_shows_everything_and_loads_nothing(folder):
    page = (folder / "index.html").read_text()
    assert "tiny: emoji, FID (EfficientNet-Lite0), 1,000 images" in page
    assert "not on the scale of the paper" in page
    for name in FIGURE_NAMES:
        assert f'src="figures/{name}.png"' in page
    for number in range(1, 19):
        assert f'<article id="C{number}">' in page
    for printed in ("13.81", "10.06", "20.77", "13.39"):
        assert f"<td>{printed}</td>" in page
    assert "The world's card" in page
    assert report.loads_from_network(page) == []
    assert "<script" not in page


def test_the_page_shows_the_gate(folder, root, tmp_path):
    assert "gate not applicable" in (folder / "index.html").read_text()
    gate = {"fid": 760.0, "tolerance": 1.0, "guidance_scale": 3, "images": 1000, "sets": ["coco30k"]}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"evaluation": {"gate": gate}}))
    metrics = report.load_metrics(folder)
    metrics.protocol.update(fid="FID (Inception)", set="coco30k")
    assert report.gate_result(metrics, tmp_path).status == "passed"
    assert "gate not applicable" in report.summary_text(folder, tmp_path)  # saved are FIDs of other features


def test_every_relative_link_of_the_page_leads_to_a_file(folder):
    page = (folder / "index.html").read_text()
    links = set(re.findall(r'(?:href|src)="([^"#:]+)"', page)) - {"html/index.html"}  # the html stage's
    assert len(links) > 20
    assert [link for link in links if not (folder / link).is_file()] == []


def test_writing_twice_gives_the_same_bytes(folder, root):
    before = hashes(folder)
    report.write_tables(folder, report.load_metrics(folder))
    report.write_index(folder, "tiny", root)
    assert hashes(folder) == before


def test_an_empty_profile_gets_a_report_that_says_so(tmp_path, root):
    folder = tmp_path / "tiny"
    (folder / "figures").mkdir(parents=True)
    (folder / "figures/figure2a.png").write_bytes(b"of an earlier run")
    write_report(folder, tmp_path / "nowhere", root)
    assert not (folder / "figures/figure2a.png").exists()
    page = (folder / "index.html").read_text()
    assert page.count("Not measured in this profile.") == len(FIGURE_NAMES)
    assert "nothing evaluated" in page
    assert page.count('class="verdict not-measured"') == 18 + len(claims.BY_FID)
    assert "18 not measured" in report.summary_text(folder)


def test_summary_names_every_verdict_and_the_report(folder):
    text = report.summary_text(folder)
    claims = pd.read_csv(folder / "claims.csv")
    assert sum(bool(re.match(r" *C\d+  ", line)) for line in text.splitlines()) == len(claims)
    assert "SPLAM / LCM in the paper" in text
    assert text.endswith(str(folder / "index.html"))


def test_summary_without_a_report_says_what_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="dvc repro report"):
        report.summary_text(tmp_path)


def test_evaluations_of_two_kinds_cannot_be_mixed(tmp_path):
    folder = write_metrics(tmp_path / "tiny", seeds=1)
    other = {"protocol": {**PROTOCOL, "fid": "FID (Inception)"}, "rows": []}
    (folder / "metrics/evaluate/zz.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match=r"differ in fid: .*Inception"):
        report.load_metrics(folder)


def test_protocol_values_that_may_differ_are_listed():
    merged = report.merge_protocols([{"fid": "a", "dtype": "float32"}, {"fid": "a", "dtype": "bfloat16"}])
    assert merged == {"fid": "a", "dtype": "float32; bfloat16"}


def test_lock_hash_ignores_the_stages_that_make_the_report(tmp_path):
    lock = tmp_path / "dvc.lock"
    stages = {"distill@a": {"outs": [{"md5": "1"}]}, "report": {"outs": [{"md5": "2"}]}, "html": {"outs": []}}
    lock.write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))
    first = report.lock_hash(lock)
    lock.write_text(yaml.safe_dump({"stages": stages | {"report": {"outs": [{"md5": "3"}]}}}))
    assert report.lock_hash(lock) == first
    lock.write_text(yaml.safe_dump({"stages": stages | {"distill@a": {"outs": [{"md5": "4"}]}}}))
    assert report.lock_hash(lock) != first


def test_code_hash_follows_code_and_notebooks(tmp_path):
    (tmp_path / "splam").mkdir()
    (tmp_path / "splam/a.py").write_text("1")
    first = report.code_hash(tmp_path)
    (tmp_path / "README.md").write_text("words")
    assert report.code_hash(tmp_path) == first
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks/a.ipynb").write_text("{}")
    assert report.code_hash(tmp_path) != first


def executed_notebook(path: Path, markdown: str) -> Path:
    """A small executed notebook."""
    code = new_code_cell("print(1)", outputs=[new_output("stream", text="1\n")], execution_count=1)
    nbformat.write(new_notebook(cells=[new_markdown_cell(markdown), code]), path)
    return path


def test_notebook_pages_open_offline_with_their_formulas(tmp_path):
    text = "# Title\n\n$z_{\\gamma,t} = \\gamma z_t$ but `$HOME` costs \\$5, see [paper](https://arxiv.org)\n\n$$\\alpha_t$$\n"
    made = [executed_notebook(tmp_path / f"{name}.ipynb", text) for name in ("b", "a")]
    pages = report.notebooks_to_html(made, tmp_path / "html")
    assert [p.name for p in pages] == ["a.html", "b.html"]
    page = pages[0].read_text()
    assert report.loads_from_network(page) == []
    assert "<script" not in page
    assert page.count("data:image/svg+xml;base64") >= 2
    assert "<code>$HOME</code>" in page
    assert 'href="https://arxiv.org"' in page
    contents = (tmp_path / "html/index.html").read_text()
    assert 'href="a.html"' in contents
    first = hashes(tmp_path / "html")
    report.notebooks_to_html(made, tmp_path / "html")
    assert hashes(tmp_path / "html") == first


def test_a_notebook_with_a_remote_picture_is_refused(tmp_path):
    path = executed_notebook(tmp_path / "a.ipynb", '<img src="https://example.org/x.png">')
    with pytest.raises(ValueError, match=r"a\.ipynb.*example\.org"):
        report.notebooks_to_html([path], tmp_path / "html")


def test_a_formula_that_cannot_be_set_stays_readable():
    assert report.formula_svg(r"\begin{aligned}x\end{aligned}") == r"<code>\begin{aligned}x\end{aligned}</code>"


def test_the_notebook_is_clean_and_its_cells_are_short():
    notebook = nbformat.read(Path(__file__).parents[1] / "notebooks/60_report.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert max(len(cell.source.splitlines()) for cell in code) <= 15
    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert all(name in tagged[0].source for name in ("profile", "reports", "samples"))


def test_readme_shows_the_report_in_git():
    """README's results are the report's, unedited (`python -m splam.report evidence --readme README.md`)."""
    readme = Path("README.md").read_text()
    assert f"{report.README_START}\n\n{report.readme_block(Path('reports/evidence'))}\n\n{report.README_END}" in readme


def test_a_readme_without_markers_is_named(tmp_path, folder):
    (tmp_path / "README.md").write_text("no markers here")
    with pytest.raises(ValueError, match="README.md has no lines <!-- results: start -->"):
        report.update_readme(tmp_path / "README.md", folder)
