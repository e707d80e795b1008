"""Ablations: one factor a run, paired by seed, apart from the claims."""

import json
import math

import pandas as pd
import pytest
from synthetic_metrics import write_metrics

from splam import ablations, report
from splam.claims import ROW_COLUMNS
from splam.evaluate import describe
from splam.params import Params, ParamsError, compose, differences, resolve

REFERENCE = "splam-w3-k100-me"
RUN = (
    "{method: splam, guidance_scale: 3, skip: 100, multiple_estimation: true, input_scaling: unit_variance, "
    "ablation: true, seeds: [0, 1, 2], training: {CHANGE}}"
)


def profile(*more: str, study: str = f"{{reference: {REFERENCE}, runs: [low, four]}}") -> Params:
    """The smoke profile with two ablation runs: another learning rate, and four points of each path."""
    changes = {"low": "learning_rate: 1.0e-4", "four": "gammas_per_path: 4"}
    overrides = [f"runs.{name}={RUN.replace('CHANGE', change)}" for name, change in changes.items()]
    overrides += [f"runs.{REFERENCE}.seeds=[0, 1, 2]", f"ablations.choices={study}", *more]
    return Params.model_validate(compose("smoke", overrides=overrides))


def rows(fids: dict[str, list[float]]) -> pd.DataFrame:
    """FIDs by run and seed; 2.5 times as much in one step."""
    found = [
        {"run": run, "seed": seed, "steps": steps, "dataset": "unseen", "final": True, "fid": fid * factor}
        for run, values in fids.items()
        for seed, fid in enumerate(values)
        for steps, factor in ((1, 2.5), (2, 1.0), (4, 1.0))
    ]
    return pd.DataFrame(found).reindex(columns=list(ROW_COLUMNS))


MEASURED = {REFERENCE: [100.0, 110.0, 120.0, 500.0], "low": [90.0, 98.0, 108.5], "four": [101.0, 111.5, 119.0]}


def test_factors_are_found_by_comparing_the_runs():
    params = profile()
    assert differences(params, "low", REFERENCE) == {"learning_rate": (1e-4, 3e-4)}
    assert differences(params, "four", REFERENCE) == {"gammas_per_path": (4, 1)}
    assert list(differences(params, "four", "low")) == ["learning_rate", "gammas_per_path"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("runs.four.training.ema_decay=0.9", "choices: four differs from .* in ema_decay, gammas_per_path: leave one"),
        ("runs.four.training.gammas_per_path=1", "ablations.choices: four does not differ from splam-w3-k100-me"),
        ("runs.four.seeds=[0, 7]", r"choices: four has the seeds \[7\], which splam-w3-k100-me lacks"),
        ("runs.four.datasets=[seen]", "choices: four: four.datasets lacks 'unseen'"),
        ("ablations.choices.runs=[low]", "runs.four.ablation: no study of `ablations` names the run"),
        ("delta.runs=[four]", "delta.runs: four is an ablation, which figures leave out"),
        ("ablations.choices.reference=lowe", "ablations.choices: there is no run 'lowe'; did you mean 'low'"),
        ("ablations.choices.run=[low]", r"ablations.choices.run = \['low'\]: unknown key; did you mean 'runs'\?"),
    ],
)
def test_studies_that_cannot_be_read_are_named(override, message):
    with pytest.raises(ParamsError, match=message):
        profile(override)


def test_a_recipe_may_differ_in_several_factors():
    study = f"{{reference: {REFERENCE}, runs: [low], recipes: [four]}}"
    params = profile("runs.four.training.batch_size=4", study=study)
    four = ablations.ablation_table(params, rows(MEASURED)).query("run == 'four'").iloc[0]
    assert (four["factor"], four["value"], four["reference_value"]) == ("batch_size, gammas_per_path", "4, 4", "16, 1")
    calls = {"four": 4 * (10 + 1 + 4 * 3), "reference": 16 * (10 + 1 + 3)}  # iterations cancel
    assert four["network_calls"] / four["reference_calls"] == pytest.approx(calls["four"] / calls["reference"])


def test_runs_are_paired_with_their_reference_by_seed():
    table = ablations.ablation_table(profile(), rows(MEASURED)).set_index(["run", "steps"])
    low = table.loc[("low", 4)]
    logs = [math.log(0.9), math.log(98 / 110), math.log(108.5 / 120)]
    assert (low["seeds"], low["ln_ratio"]) == (3, pytest.approx(sum(logs) / 3))
    deviation = math.sqrt(sum((x - sum(logs) / 3) ** 2 for x in logs) / 2)
    assert low["high"] - low["ln_ratio"] == pytest.approx(4.302653 * deviation / math.sqrt(3))
    assert (low["fid"], low["reference_fid"]) == pytest.approx((98.8333, 110.0), rel=1e-5)  # the fourth seed is alone
    assert (low["verdict"], table.loc[("four", 4), "verdict"]) == ("better", "within noise")
    swapped = ablations.comparison(rows(MEASURED), REFERENCE, "low", 4)
    assert swapped["verdict"] == "worse" and swapped["ln_ratio"] == pytest.approx(-low["ln_ratio"])


def test_what_is_farther_from_real_images_may_be_nearer_to_the_teachers():
    measured = rows(MEASURED)
    table = ablations.ablation_table(profile(), measured.assign(fid_teacher=5000 / measured["fid"]))
    low = table.set_index(["run", "steps"]).loc[("low", 4)]
    assert (low["verdict"], low["teacher_verdict"]) == ("better", "worse")
    assert low["teacher_ln_ratio"] == pytest.approx(-low["ln_ratio"])
    assert low["fid_teacher"] == pytest.approx(sum(5000 / fid for fid in (90, 98, 108.5)) / 3)
    shown = ablations.readable(table).set_index("value").loc["0.0001"]
    assert shown["verdict to teacher"] == "worse" and shown["to teacher, 4 steps"].startswith("1.11")


def test_one_seed_and_none_are_said():
    params = profile()
    one = ablations.ablation_table(params, rows({REFERENCE: [100.0], "low": [90.0]}))
    assert set(one.loc[one["run"] == "low", "verdict"]) == {"one seed, not tested"}
    assert set(one.loc[one["run"] == "four", "verdict"]) == {"not measured"}
    assert "one seed, not tested" in ablations.markdown(one, "FID")
    assert "none measured" in ablations.best(one[one["run"] == "four"])


def test_the_table_is_read_a_run_a_line_and_names_the_best():
    table = ablations.ablation_table(profile(), rows(MEASURED))
    shown = ablations.readable(table).set_index("value")
    assert shown.loc["0.0001", "verdict"] == "better" and shown.loc["4", "calls / reference's"] == "1.64"
    assert shown.loc["0.0001", "ratio, 2 steps"].startswith("0.898 [")
    assert "2 trials; lowest FID in 4 steps beside the reference: learning_rate = 0.0001, 98.83" in ablations.best(
        table
    )
    assert "Of the 6 comparisons" in ablations.markdown(table, "FID (x)")
    assert ablations.overall({1: "worse", 2: "better", 4: "better"}) == "worse in 1; better in 2, 4"


def with_ablation(folder):
    """Metrics of the claims' runs, and beside them an ablation run with the method, w, k and seeds of one of them."""
    content = json.loads((folder / "metrics/evaluate/students.json").read_text())
    reference = "SPLAM scaled input w3 k100 True"
    extra = [row | {"run": "low", "fid": row["fid"] * 0.8} for row in content["rows"] if row["run"] == reference]
    for row in content["rows"]:
        row["run"] = REFERENCE if row["run"] == reference else row["run"]
    content["rows"] += [row | {"ablation": True} for row in extra]
    (folder / "metrics/evaluate/students.json").write_text(json.dumps(content))
    return folder


def test_ablation_runs_leave_claims_and_tables_as_they_are(tmp_path):
    plain, more = write_metrics(tmp_path / "a"), with_ablation(write_metrics(tmp_path / "b"))
    for folder in (plain, more):
        report.write_tables(folder, report.load_metrics(folder))
        report.write_claims(folder, report.load_metrics(folder))
    for name in ("claims.csv", "claims_parts.csv", "tables/table1.csv", "tables/table2a.csv", "tables/table2c.csv"):
        assert (plain / name).read_bytes() == (more / name).read_bytes(), name
    assert len(report.load_metrics(more).evaluations) > len(report.load_metrics(more).rows)


def test_the_page_shows_each_study_with_its_picture(tmp_path):
    folder, root = with_ablation(write_metrics(tmp_path / "tiny")), tmp_path
    metrics, params = report.load_metrics(folder), profile()
    report.write_tables(folder, metrics)
    report.write_claims(folder, metrics)
    report.write_figures(folder, metrics, tmp_path / "none")
    table = report.write_ablations(folder, metrics, params)
    page = report.write_index(folder, "tiny", root).read_text()
    assert '<article id="ablation-choices">' in page and page.count("choices: ratios and intervals") == 1
    assert "<td>learning_rate</td>" in page and "<td>not measured</td>" in page
    assert table.query("run == 'low' and steps == 4")["ln_ratio"].item() == pytest.approx(math.log(0.8))
    assert pd.read_csv(folder / "ablations.csv")["run"].tolist() == ["low"] * 3 + ["four"] * 3
    report.write_ablations(folder, metrics, Params.model_validate(compose("smoke")))
    assert pd.read_csv(folder / "ablations.csv").empty and not (folder / "tables/ablations.md").exists()
    assert 'id="ablations"' not in report.write_index(folder, "tiny", root).read_text()


def test_rows_say_whether_their_run_is_an_ablation():
    params = profile()
    assert (
        describe(resolve(params, "low-s0"))["ablation"] and not describe(resolve(params, f"{REFERENCE}-s0"))["ablation"]
    )
    assert params.systems["low-s0"].ablation and "ablation" not in params.systems["low-s0"].distill["run"]


def test_a_variant_names_a_recipe_and_does_not_train_it():
    params = profile()
    runs = {name: run.model_dump() for name, run in params.runs.items()}
    runs["low"]["variant"] = "low rate"
    named = Params.model_validate(params.model_dump() | {"runs": runs})
    assert describe(resolve(named, "low-s0"))["variant"] == "low rate"
    assert describe(resolve(params, "low-s0"))["variant"] == "scaled input"
    assert differences(named, "low", REFERENCE) == differences(params, "low", REFERENCE)
    lcm = next(name for name, run in runs.items() if run["method"] == "lcm")
    runs[lcm]["variant"] = "low rate"
    with pytest.raises(ValueError, match=f"runs.{lcm}.variant: 'low rate' names a recipe of splam"):
        Params.model_validate(params.model_dump() | {"runs": runs})
