"""The report as a whole: complete, the same bytes twice, readable offline, and unharmed by what is missing."""

import dataclasses
import re
from pathlib import Path

import nbformat
import pandas as pd
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from splam.report import made
from splam.report.claims import CLAIMS
from splam.report.figures import FIGURES
from splam.report.metrics import where
from splam.report.page import build, finding, glance, notebooks_to_html, summary, tally, write_files, write_page
from splam.report.rules import FEW_SEEDS, MISSING
from tests.runs import contents

PLOTTED = ["along_gamma", "along_t", "figure2a", "figure2b", "figure2c", "figure3b"]


def named(page: Path, attribute: str, tag: str | bool = True) -> set[str]:
    """The values of an attribute in a page."""
    soup = BeautifulSoup(page.read_text(), "html.parser")
    return {found[attribute] for found in soup.find_all(tag, **{attribute: True})}


def test_everything_is_written(written):
    tables = ["table1", "table2a", "table2b", "table2c"]
    assert sorted(p.stem for p in written.glob("tables/*.csv")) == tables
    assert sorted(p.stem for p in written.glob("tables/*.md")) == tables
    assert sorted(p.stem for p in written.glob("figures/*.png")) == sorted(FIGURES)
    assert sorted(p.stem for p in written.glob("figures/*.csv")) == PLOTTED
    claims = pd.read_csv(written / "claims.csv")
    assert set(claims["id"]) == set(CLAIMS)
    assert list(pd.read_csv(written / "ablations.csv"))[:2] == ["study", "run"]
    assert not any("0.019" in path.read_text() for path in written.glob("tables/*")), "a latency, ever another"


def test_the_page_shows_everything_and_loads_nothing(written):
    path = written / "index.html"
    page = path.read_text()
    for text in ("1,000 images, FID (EfficientNet-Lite0), 3 seeds", "Not on the scale", "13.81", "seed: 0"):
        assert text in page
    loads = named(path, "src")
    assert set(CLAIMS) | set(FIGURES) <= named(path, "id")
    assert {f"figures/{name}.png" for name in PLOTTED} <= loads and "url(figures/figure4.webp)" in page
    local = [link for link in named(path, "href") | loads if not link.startswith(("#", "data:", "html/"))]
    assert len(local) > 20 and [link for link in local if not (written / link).is_file()] == []


def test_an_empty_profile_gets_a_report_that_says_so(params, empty, tmp_path, monkeypatch):
    monkeypatch.setattr(made, "stages", lambda _: [])  # DVC takes seconds to list them, and `written` has them
    report = build(params, empty)
    write_page(report, tmp_path, write_files(report, tmp_path, tmp_path / "nowhere"))
    page = (tmp_path / "index.html").read_text()
    assert page.count("Not measured in this profile.") == len([f for f in FIGURES.values() if "paper" in f])
    assert "Nothing has been measured yet." in page and 'title="not measured"' in page


def test_the_page_shows_studies_and_the_gate(report, written, tmp_path, monkeypatch):
    monkeypatch.setattr(made, "stages", lambda _: [])
    row = {"study": "choices", "run": "low", "reference": "r", "factor": "rate", "value": "1", "reference_value": "2"}
    row |= {"steps": 4, "fid_of": "real images", "fid": 1.0, "seeds": 3, "unit": "ln ratio of FID", "values": "0 0.1"}
    row |= {"estimate": 0.0, "low": -0.1, "high": 0.1, "accept_low": -9.0, "accept_high": 0.0}
    row |= {"excess": 0.0, "verdict": "better", "alone": "holds"}
    changed = dataclasses.replace(report, ablations=pd.DataFrame([row]), gate=("not passed", "18 is not 8"))
    write_page(changed, tmp_path, {})
    page = (tmp_path / "index.html").read_text()
    assert '<article id="ablation-choices">' in page and "1.000 [0.905, 1.105] <small>ratio of FID, better" in page
    assert "Gate not passed: 18 is not 8." in page
    assert 'id="ablations"' not in (written / "index.html").read_text()


def test_summary_says_what_was_found_and_names_every_verdict(report):
    lines = summary(report).splitlines()
    told = report.verdicts[~report.verdicts["verdict"].isin([FEW_SEEDS, MISSING])]
    assert sum(line.strip().startswith("C") for line in lines) == len(told) > 18
    assert "gate not applicable" in lines[1] and "Nothing has been measured yet." in lines
    rows = report.metrics.rows.replace({"run": {"LCM (fix w)  3 20 False": report.params.pictures.lcm}})
    rows = rows.replace({"run": {"SPLAM scaled input 3 100 True": report.params.pictures.splam}})
    seen = dataclasses.replace(report, metrics=dataclasses.replace(report.metrics, rows=rows))
    gap = where(rows, run=report.params.pictures.lcm, dataset="unseen", steps=1, final=True)["gap_closed"].mean()
    assert glance(seen).loc[("LCM", 1), "gap_closed"] == gap
    shares = r"\d+%, \d+% and \d+%"
    said = rf"In 1, 2 and 4 steps SPLAM closes {shares} of the gap .* teacher, LCM {gap:.0%}, \d+% and \d+%\."
    assert re.fullmatch(said, finding(seen)[0])
    assert finding(seen)[1] == "SPLAM (k = 100 with ME, scaled input, w = 3) and LCM (k = 20, w = 3)."
    no_gap = dataclasses.replace(seen.metrics, rows=rows.assign(gap_closed=float("nan")))
    assert finding(dataclasses.replace(seen, metrics=no_gap))[0].startswith("In 1, 2 and 4 steps SPLAM has an FID of ")


def test_claims_are_counted_where_several_seeds_judge_them(report):
    assert sum(map(int, re.findall(r"\((\d+)\)", tally(report.verdicts)))) == 18
    assert tally(report.verdicts.assign(verdict=FEW_SEEDS)) == tally(report.verdicts.assign(verdict=MISSING)) == ""
    one = report.verdicts.assign(verdict=["holds" if id == "C9" else "cannot tell" for id in report.verdicts["id"]])
    assert tally(one) == "Verdicts on the paper's 18 claims, with the scaled input: cannot tell (17), holds (1)."


def test_notebook_pages_open_offline_with_their_formulas(tmp_path):
    text = "# A\n\n$z_{\\gamma,t} = \\gamma z_t$ but `$HOME`, see [paper](https://arxiv.org)\n\n$$\\alpha_t < 1$$\n"
    code = new_code_cell("print(1)", outputs=[new_output("stream", text="1\n")], execution_count=1)
    (tmp_path / "executed").mkdir()
    for name in ("b", "a", "c.failed"):
        nbformat.write(new_notebook(cells=[new_markdown_cell(text), code]), tmp_path / f"executed/{name}.ipynb")
    notebooks_to_html(tmp_path / "executed", tmp_path / "html")
    path = tmp_path / "html/a.html"
    page = path.read_text()
    assert "<script" not in page and not named(path, "src") | named(path, "href", "link")
    assert "https://arxiv.org" in named(path, "href")
    assert page.count("<math") == 2 and "<code>$HOME</code>" in page and "\\alpha" not in page
    assert {"a.html", "b.html", "../index.html"} <= named(tmp_path / "html/index.html", "href")
    assert not list((tmp_path / "html").glob("c*"))  # what a stage has left that failed
    first = contents(tmp_path / "html")
    notebooks_to_html(tmp_path / "executed", tmp_path / "html")
    assert contents(tmp_path / "html") == first
