"""The evidence profile: every claim can be tested, and tuning is fair."""

import numpy as np
import pandas as pd
import pytest
from synthetic_metrics import baseline_rows, floor_rows, latency_rows, measured

from splam import ablations, claims, figures, tables
from splam.evaluate import describe
from splam.params import Params, compose, differences, resolve, run_names

REFERENCE = "splam-w3-k100-me"


@pytest.fixture(scope="module")
def evidence() -> Params:
    return Params.model_validate(compose("evidence"))


def test_lcm_is_tuned_with_the_effort_of_splam(evidence):
    trials = {
        name: {tuple((k, v[0]) for k, v in differences(evidence, run, study.reference).items()) for run in study.runs}
        for name, study in evidence.ablations.items()
    }
    lcm, splam = trials["tuning-lcm"], trials["tuning-splam"]
    assert len(lcm) == len(splam) == 7
    assert {t for t in lcm if t[0][0] != "skip"} == {t for t in splam if t[0][0] != "skip"}
    varied = {factor for study in trials.values() for trial in study for factor, _ in trial}
    asked = {"learning_rate", "iterations", "ema_decay", "loss", "skip", "gamma_law", "gamma_one_probability"}
    assert asked | {"sigma_form", "gamma_max_frequency"} <= varied
    assert len(trials["recipes"]) >= 8


def test_evidence_has_every_k_and_the_seeds_that_the_claims_ask_for(evidence):
    students = {name: run for name, run in evidence.runs.items() if run.method in ("lcm", "splam") and not run.ablation}
    for method in ("lcm", "splam"):
        found = {run.skip for run in students.values() if (run.method, run.guidance_scale) == (method, 3)}
        assert found == {20, 60, 100, 200}, method
    assert min(len(run.seeds) for run in evidence.runs.values()) >= 3
    five = ["lcm-w8-k20", "splam-w8-k20", "splam-w8-k100-me"]
    five += ["lcm-w3-k20", "splam-w3-k20", "splam-w3-k100", "splam-w3-k100-me"]
    assert {len(evidence.runs[name].seeds) for name in five} == {5}


def test_equal_compute_is_equal(evidence):
    totals = [sum(ablations.calls(evidence, run).values()) for run in (REFERENCE, "splam-points-4-equal-compute")]
    assert totals[1] / totals[0] == pytest.approx(1, abs=0.03)


def evaluations(params: Params) -> pd.DataFrame:
    """Made-up rows of every run and seed, as the evaluate stage writes them."""
    rng, rows = np.random.default_rng(0), baseline_rows()
    for name in run_names(params):
        resolved = resolve(params, name)
        facts = {**describe(resolved), "iteration": resolved.training.iterations, "final": True}
        for dataset in (*resolved.run.datasets, "unseen-small"):
            rows += [
                measured(facts, dataset, n, 900 + 100 / n + rng.normal(), rng.normal(60))
                for n in params.evaluation.steps
            ]
        for iteration in resolved.training.snapshots:
            facts |= {"iteration": iteration, "final": iteration == resolved.training.iterations}
            rows.append(measured(facts, "unseen-curve", 4, 1000 - iteration + rng.normal(), 60.0))
    return with_columns(rows)


def with_columns(rows: list[dict]) -> pd.DataFrame:
    """As splam.report reads rows: with every column, whether measured or not; "ablation" beside them."""
    return pd.DataFrame(rows).reindex(columns=[*claims.ROW_COLUMNS, "ablation"])


def delta(params: Params) -> pd.DataFrame:
    names = [name for name in run_names(params) if name.rsplit("-s", 1)[0] in params.delta.runs]
    facts = [describe(resolve(params, name)) for name in names]
    return pd.DataFrame(
        [{**f, "t": t, "delta_rms": 0.1, "x0_error_rms": 0.2} for f in facts for t in range(119, 980, 20)]
    )


def test_every_claim_can_be_tested(evidence):
    rows = evaluations(evidence)
    rows = rows[~rows["ablation"].isin([True])]
    saved = delta(evidence), pd.DataFrame(latency_rows()), with_columns(floor_rows())
    found = claims.evaluate_claims(rows, *saved).set_index(["id", "variant"])
    untested = found[found["verdict"].isin([claims.MISSING, claims.ONE_SEED])]
    raw = {claim for claim, variant in untested.index if variant == "raw input"}
    assert len(untested) == len(raw), untested["measured"].to_dict()
    assert raw <= {"C7", "C8", "C10", "C15", "C16", "C17"}, "the raw reading has no w but 3 and 8, nor k = 100 at 8"
    assert found["seeds"].min() >= 3
    five = [(claim, "scaled input") for claim in ("C1", "C6", "C7", "C14", "C16")]
    assert set(found.loc[five, "seeds"]) == {5}
    built = tables.build_tables(rows, saved[1], saved[2])
    ours = built["table2a"]
    assert set(ours.loc[ours["method"] == "SPLAM (scaled input)", "seeds"]) == {5}
    assert set(figures.figure2a_points(rows)["skip"].dropna()) == {20, 60, 100, 200}


def test_every_study_has_a_row_for_each_run_and_step_count(evidence):
    table = ablations.ablation_table(evidence, evaluations(evidence))
    assert len(table) == 3 * sum(len(s.runs) + len(s.recipes) for s in evidence.ablations.values()) == 3 * 27
    assert set(table["seeds"]) <= {3, 5} and table["ln_ratio"].notna().all()
