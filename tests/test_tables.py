"""Tables hold what was measured and what the paper printed, and keep the two apart."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from synthetic_metrics import write_metrics

from splam import tables
from splam.report import Metrics, load_metrics


@pytest.fixture(scope="module")
def metrics(tmp_path_factory) -> Metrics:
    return load_metrics(write_metrics(tmp_path_factory.mktemp("tiny"), seeds=3))


@pytest.fixture(scope="module")
def built(metrics) -> dict[str, pd.DataFrame]:
    return tables.build_tables(metrics.rows, metrics.latency, metrics.floors)


def test_table1_has_its_columns_methods_steps_and_sets(built):
    table = built["table1"]
    assert list(table)[:5] == ["method", "dataset", "steps", "fid", "clip_score"]
    methods = {"DDIM", "DPM-Solver", "DPM-Solver++", "LCM*", "LCM (fix w)", "SPLAM (raw input)", "SPLAM (scaled input)"}
    counts = table.dropna(subset=["steps"]).groupby("method")["steps"].agg(list)
    assert set(counts.index) == methods | {tables.UNDISTILLED}
    assert counts.pop(tables.UNDISTILLED) == [1, 2, 4], "on unseen combinations alone"
    assert all(steps == [1, 2, 4, 1, 2, 4] for steps in counts)


def test_a_cell_is_the_mean_over_seeds_with_its_standard_error(metrics, built):
    rows = metrics.rows
    same = (rows["run"] == "LCM (fix w)  w8 k20 False") & (rows["steps"] == 2) & (rows["dataset"] == "unseen")
    fids = rows.loc[same, "fid"]
    cell = built["table1"].set_index(["method", "dataset", "steps"]).loc[("LCM (fix w)", "unseen", 2)]
    assert len(fids) == cell["seeds"] == 3
    assert cell["fid"] == pytest.approx(fids.mean())
    assert cell["fid_se"] == pytest.approx(fids.std(ddof=1) / math.sqrt(3))


@pytest.mark.parametrize(
    ("table", "method", "dataset", "steps", "column", "value"),
    [
        ("table1", "SPLAM (raw input)", "unseen", 4, "paper_fid", 13.81),
        ("table1", "SPLAM (scaled input)", "seen", 4, "paper_fid", 10.09),
        ("table1", "DPM-Solver", "seen", 1, "paper_clip_score", 6.35),
        ("table2a", "LCM (fix w)", "unseen", 2, "paper_fid", 14.29),
        ("table2a", "Teacher", "unseen", 50, "paper_fid", 8.03),
        ("table2b", "SPLAM (scaled input)", "unseen-small", 2, "paper_fid", 23.07),
        ("table2c", "DPM-Solver++", "unseen", 4, "paper_latency_s", 0.26),
    ],
)
def test_the_papers_number_stands_beside_ours(built, table, method, dataset, steps, column, value):
    row = built[table].set_index(["method", "dataset", "steps"]).loc[(method, dataset, steps)]
    assert row[column] == value
    assert row["source"] == "measured"
    assert row["fid"] != row["paper_fid"]


@pytest.mark.parametrize("name", ["table1", "table2a", "table2b", "table2c"])
def test_every_number_of_the_paper_appears(built, name):
    assert set(tables.paper_table(name)["fid"]) <= set(built[name]["paper_fid"])


def test_cited_rows_never_fill_a_measured_cell(built):
    for name in ("table2a", "table2b", "table2c"):
        cited = built[name][built[name]["source"] == "cited"]
        assert len(cited)
        assert cited[["fid", "seeds", "latency_s"]].isna().all().all()
        assert cited["paper_fid"].notna().all()
    assert "DMD" in set(built["table2a"]["method"])


def test_floors_close_every_table(built):
    for name, table in built.items():
        floors = table[table["method"].isin(tables.FLOORS[:2])]
        assert set(floors["fid"]) == {287, 332}, name
    shuffled = built["table1"].set_index(["method", "dataset"]).loc[("Shuffled captions", "seen")]
    assert shuffled["clip_score"] == 5
    assert pd.isna(shuffled["fid"])


def test_table_2b_is_of_the_smaller_sample_and_latency_of_lcm_is_splams(built):
    measured = built["table2b"][built["table2b"]["source"] == "measured"]
    assert set(measured["images"]) == {500}
    seconds = built["table2c"].set_index(["method", "steps"])["latency_s"]
    assert seconds[("LCM (fix w)", 4)] == seconds[("SPLAM (raw input)", 4)] == 0.019


def test_table_2_has_4_step_splams_fid_over_every_methods(built):
    table = built["table2a"].set_index(["method", "steps"])
    ours = table.loc[("SPLAM (scaled input)", 4)]
    assert ours["splam_ratio"] == 1
    for solver in ("DDIM", "DPM-Solver++"):
        row = table.loc[(solver, 4)]
        assert row["splam_ratio"] == pytest.approx(ours["fid"] / row["fid"])
    assert "4-step SPLAM / it" in tables.readable(built["table2a"])


def test_missing_rows_leave_cells_empty(metrics):
    rows = metrics.rows[metrics.rows["method"] != "LCM*"]
    table = tables.table1(rows, metrics.floors).set_index(["method", "dataset", "steps"])
    gap = table.loc[("LCM*", "seen", 1)]
    assert gap["source"] == "not measured"
    assert pd.isna(gap["fid"])
    assert gap["paper_fid"] == 35.36


def test_only_finished_runs_enter_and_two_runs_of_one_seed_are_an_error(metrics):
    rows = metrics.rows
    line = tables.Line("LCM*", 4, {"guidance_scale": 8, "skip": 20})
    assert len(tables.pick(rows.assign(final=rows["final"] & (rows["method"] != "LCM*")), line, "unseen")) == 0
    twin = rows[rows["method"] == "LCM*"].assign(run="twin")
    with pytest.raises(ValueError, match="twin"):
        tables.pick(pd.concat([rows, twin]), line, "unseen")


def test_caption_and_markdown_name_the_metric_and_never_plain_fid(metrics, built):
    text = tables.caption("table1", built["table1"], metrics.protocol)
    assert "FID (EfficientNet-Lite0)" in text
    assert "CLIP score (tiny, in-domain)" in text
    assert "1,000 images" in text
    assert "trailing" in text
    page = tables.markdown(built["table1"], text)
    assert page.count("\n|") == len(built["table1"]) + 2
    assert "±" in page
    assert "features not recorded" in tables.caption("table1", built["table1"], {})


def test_a_second_clip_score_has_a_column_and_a_name(metrics, built):
    protocol = metrics.protocol | {"clip_score_beside": "CLIP score (ViT-L-14/openai)"}
    table = tables.table1(metrics.rows.assign(clip_score_beside=27.25), metrics.floors)
    assert list(tables.readable(table)["second CLIP score"])[:2] == ["27.25", "27.25"]
    assert "; second: CLIP score (ViT-L-14/openai); 1,000 images" in tables.caption("table1", table, protocol)
    assert "second CLIP score" not in tables.readable(built["table1"])


def test_headline_compares_ratios(built):
    head = tables.headline(built["table1"]).set_index(["student", "steps"])
    fid = built["table1"].set_index(["method", "dataset", "steps"])["fid"]
    ratio = fid[("SPLAM (scaled input)", "unseen", 1)] / fid[("LCM (fix w)", "unseen", 1)]
    assert head.loc[("SPLAM (scaled input)", "1"), "SPLAM / LCM"] == f"{ratio:.3f}"
    assert head.loc[("SPLAM (scaled input)", "1"), "SPLAM / LCM in the paper"] == f"{40.52 / 43.87:.3f}"


def test_world_card_orders_steps_and_adds_floors(metrics):
    card = tables.world_card(metrics.world, metrics.floors).set_index("sampler")
    assert list(card) == ["1 step", "2 steps", "4 steps", "no sampling"]
    assert card.loc["DDIM, w = 3", "4 steps"] == f"{1060 * 1.6:,.0f}"
    assert card.loc["Real images", "no sampling"] == "287"


def test_the_teachers_quality_is_shown_for_both_sets_with_their_own_floors(metrics):
    seen = metrics.world[(metrics.world["steps"] == 4) & (metrics.world["guidance_scale"] == 3)].assign(dataset="seen")
    world = pd.concat([metrics.world, seen.assign(fid=1234.0, kid=0.25)])
    quality = tables.teacher_quality(world, metrics.floors).set_index(["test set", "what"])
    floors = ["Real images", "VAE reconstruction", "Shuffled captions"]
    drawn = ["DDIM, 4 steps, w = 3", "DDIM, 4 steps, w = 8"]
    assert list(quality.loc["unseen"].index) == [*drawn, *floors]
    assert list(quality.loc["seen"].index) == [drawn[0], *floors]
    assert dict(quality.loc[("seen", drawn[0])]) == {
        "FID": "1,234",
        "KID": "0.25",
        "precision": "0.5",
        "recall": "0.4",
        "CLIP score": "45",
    }
    assert quality.loc[("unseen", "Shuffled captions"), "FID"] == ""
    assert tables.world_card(world, metrics.floors).equals(tables.world_card(metrics.world, metrics.floors))


def test_what_stands_beside_fid_is_read_beside_it(built, metrics):
    shown = tables.readable(built["table1"])
    beside = ["FID to teacher", "KID", "precision", "recall", "pixels from teacher"]
    assert list(shown)[list(shown).index("paper's FID") + 1 :][:5] == beside
    assert list(shown.loc[0, beside]) == ["2,080", "0.1", "0.5", "0.4", "0.2"]
    assert "the teacher's own many-step images" in tables.caption("table1", built["table1"], metrics.protocol)
    unpaired = tables.table1(*(frame.assign(paired_distance=math.nan) for frame in (metrics.rows, metrics.floors)))
    assert "pixels from teacher" not in tables.readable(unpaired)
    assert "own many-step images" not in tables.caption("table1", unpaired, metrics.protocol)


@pytest.mark.parametrize(
    ("value", "text"), [(12345.6, "12,346"), (887.62, "887.6"), (10.06, "10.06"), (1e-11, "0"), (math.nan, "")]
)
def test_numbers_are_readable(value, text):
    assert tables.number(value) == text


def test_other_pipelines_stand_in_table_2_beside_the_papers_number(metrics):
    row = metrics.rows[metrics.rows["dataset"] == "unseen"].iloc[[0]]
    facts = {
        "system": "pipeline-a",
        "run": "",
        "variant": "",
        "guidance_scale": 1,
        "seed": 0,
        "final": True,
        "steps": 1,
    }
    others = [row.assign(**facts, method=name) for name in ("InstaFlow-0.9B", "Another")]
    others[1] = others[1].assign(system="pipeline-b")
    built = tables.build_tables(pd.concat([metrics.rows, *others]), metrics.latency, metrics.floors)
    table = built["table2a"].set_index(["method", "steps"])
    assert table.index.is_unique  # measured, and then not cited as well
    assert list(table.loc[("InstaFlow-0.9B", 1), ["source", "paper_fid"]]) == ["measured", 13.10]
    assert table.loc[("Another", 1), "source"] == "measured" and pd.isna(table.loc[("Another", 1), "paper_fid"])
    assert "Another" not in set(built["table2b"]["method"])
