"""Tables hold what was measured and what the paper printed, and keep the two apart."""

import dataclasses
import math
from pathlib import Path

import pandas as pd
import pytest

from splam.report import tables
from splam.report.metrics import Metrics, where
from splam.report.tables import TABLES, build_table, caption, lay_out, readable, written


@pytest.fixture
def built(report) -> dict[str, pd.DataFrame]:
    return report.tables


def cell(table: pd.DataFrame, method: str, steps: int, dataset: str = "unseen") -> pd.Series:
    return where(table.astype({"steps": float}), method=method, steps=steps, dataset=dataset).iloc[0]


def changed(metrics: Metrics, rows: pd.DataFrame) -> Metrics:
    return dataclasses.replace(metrics, rows=rows)


def test_a_cell_is_the_mean_over_seeds_with_its_standard_error(metrics, built):
    fids = where(metrics.rows, run="LCM (fix w)  8 20 False", steps=2, dataset="unseen")["fid"]
    found = cell(built["table1"], "LCM (fix w)", 2)
    assert len(fids) == found["seeds"] == 3
    assert found["fid"] == pytest.approx(fids.mean())
    assert found["fid_se"] == pytest.approx(fids.std(ddof=1) / math.sqrt(3))


@pytest.mark.parametrize(
    ("table", "method", "dataset", "steps", "column", "value"),
    [
        ("table1", "SPLAM (raw input)", "unseen", 4, "paper_fid", 13.81),
        ("table2b", "SPLAM (scaled input)", "unseen-small", 2, "paper_fid", 23.07),
        ("table2c", "DPM-Solver++", "unseen", 4, "paper_latency_s", 0.26),
    ],
)
def test_the_papers_number_stands_beside_ours(built, table, method, dataset, steps, column, value):
    row = cell(built[table], method, steps, dataset)
    assert row[column] == value and row["source"] == "measured" and row["fid"] != row["paper_fid"]


@pytest.mark.parametrize("name", TABLES)
def test_every_number_of_the_paper_appears_and_never_fills_a_measured_cell(built, name):
    paper = pd.read_csv(Path(tables.__file__).parent / f"paper/{name}.csv")
    assert set(paper["paper_fid"]) <= set(built[name]["paper_fid"])
    cited = where(built[name], source="cited")
    measured = [column for column in ("fid", "seeds", "latency_s") if column in cited]
    assert cited[measured].isna().all().all() and cited["paper_fid"].notna().all()


def test_a_control_has_its_rows_where_it_was_measured(built, metrics):
    name = "Undistilled, guided"
    assert name not in set(built["table1"]["method"]) and "LCM*" in set(built["table1"]["method"])
    rows = where(metrics.rows, method="Undistilled").assign(method=name)
    found = build_table("table1", changed(metrics, pd.concat([metrics.rows, rows])))
    for steps in (1, 2, 4):
        assert cell(found, name, steps)["fid"] == cell(found, "Undistilled", steps)["fid"]


def test_table_2b_is_of_the_smaller_sample_and_latency_of_lcm_is_splams(built):
    assert set(where(built["table2b"], source="measured")["images"]) == {500}
    seconds = [cell(built["table2c"], method, 4)["latency_s"] for method in ("LCM (fix w)", "SPLAM (raw input)")]
    assert seconds == [0.019, 0.019]


def test_only_finished_runs_enter_and_two_runs_of_one_seed_are_an_error(metrics):
    rows = metrics.rows
    unfinished = rows.assign(final=rows["final"] & (rows["method"] != "LCM*"))
    assert cell(build_table("table1", changed(metrics, unfinished)), "LCM*", 4)["source"] == "not measured"
    twin = where(rows, method="LCM*").assign(run="twin")
    with pytest.raises(ValueError, match="twin"):
        build_table("table1", changed(metrics, pd.concat([rows, twin])))


def test_the_layout_is_the_papers_with_the_best_of_each_column_marked(built):
    groups, rows = lay_out(built["table1"], (1, 2, 4))
    main = [(group["test"], group["measure"]) for group in groups if group["main"]]
    assert main == [(test, measure) for test in ("unseen", "seen") for measure in ("fid", "clip_score")]
    assert {"kid", "gap_closed"} <= {group["measure"] for group in groups if not group["main"]}
    best = rows[rows["fid_best"]]
    assert set(best["line"]) == {"SPLAM (scaled input)"} and list(best["steps"]) == [1, 2, 4] * 2
    families = lay_out(built["table2a"])[1].groupby("family", observed=True)
    assert [*families.groups] == ["Unaccelerated", "GANs", "Accelerated Diffusion", "Teacher", "Floors"]
    assert "LCM (fix w), 2 steps" in set(families.get_group("Accelerated Diffusion")["line"])


def test_gap_closed_is_the_way_from_the_undistilled_network_to_another_draw_of_the_teacher(metrics):
    rows = where(metrics.rows, dataset="unseen", guidance_scale=8, final=True)
    for method, steps in (("LCM (fix w)", 1), ("LCM (fix w)", 4), ("DDIM", 4)):
        for row in where(rows, method=method, steps=steps).to_dict("records"):
            start = where(rows, method="Undistilled", steps=steps, seed=row["seed"])["fid_teacher"].item()
            assert row["gap_closed"] == pytest.approx((start - row["fid_teacher"]) / (start - 400))
    assert set(where(rows, method="Undistilled")["gap_closed"]) == {0}
    assert where(metrics.rows, dataset="seen")["gap_closed"].isna().all(), "the teacher has no images of that set"


def test_the_papers_number_is_read_in_brackets(built, metrics):
    shown = readable(built["table1"])
    assert list(shown) == ["method", "test set", "steps", "FID", "CLIP score"]
    row = shown[(shown["method"] == "DDIM") & (shown["steps"] == "4")].iloc[0]
    assert row["FID"] == "1,856.0 ± 0.0 (32.77)" and "<NA>" not in shown.to_string()
    text = caption("table1", built["table1"], metrics)
    assert text.startswith("FID (EfficientNet-Lite0); CLIP score (tiny, in-domain); 1,000 images. Baselines: trailing")


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [
        ("fid", 12345.67, "12,345.7"),
        ("fid_teacher", 1.4e-11, "0.0"),
        ("clip_score", 27.256, "27.26"),
        ("kid", -0.02167, "-0.0217"),
        ("paper_fid", 10.06, "10.06"),
        ("fid", math.nan, ""),
    ],
)
def test_numbers_are_rounded_to_what_is_meaningful(column, value, text):
    assert written(column, value) == text


def test_other_pipelines_stand_in_table_2_beside_the_papers_number(metrics):
    facts = {"run": "", "variant": "", "guidance_scale": 1, "seed": 0, "final": True, "steps": 1}
    row = where(metrics.rows, dataset="unseen").iloc[[0]].assign(**facts)
    others = [row.assign(system="a", method="InstaFlow-0.9B"), row.assign(system="b", method="Another")]
    more = changed(metrics, pd.concat([metrics.rows, *others]))
    table = build_table("table2a", more, ["a", "b"])
    assert list(where(table, method="InstaFlow-0.9B")["source"]) == ["measured"], "and then not cited as well"
    assert cell(table, "InstaFlow-0.9B", 1)["paper_fid"] == 13.10 and pd.isna(cell(table, "Another", 1)["paper_fid"])
    assert "Another, w = 1, 1 step" in set(lay_out(table)[1]["line"])
    assert "Another" not in set(build_table("table2b", more, ["a", "b"])["method"])


def test_splam_lora_stands_beside_lcm_lora(metrics, built):
    assert "SPLAM-LoRA" not in {name.split(" (")[0] for name in built["table2c"]["method"]}
    facts = {"system": "lora", "run": "lora", "method": "SPLAM-LoRA"}
    row = where(metrics.rows, method="SPLAM", variant="scaled input", guidance_scale=8, skip=100).assign(**facts)
    methods = list(build_table("table2c", changed(metrics, pd.concat([metrics.rows, row])))["method"])
    assert methods[methods.index("LCM-LoRA") + 1] == "SPLAM-LoRA (scaled input)"


def test_a_name_ends_no_cell_of_a_table():
    table = pd.DataFrame({"method": ["a|b"], "FID": ["1"]})
    assert tables.markdown(table).splitlines()[2].replace(" ", "") == r"|a\|b|1|"
