"""Ablations: one factor a run, paired by seed, apart from the claims."""

import math

import pandas as pd
import pytest

from splam.config import Params, parse
from splam.profile import compose
from splam.report.ablations import ablation_table, differences
from splam.report.metrics import COLUMNS, where
from splam.report.rules import REAL, TEACHER

REFERENCE = "splam-w3-k100-me"
RUN = (
    "{method: splam, guidance_scale: 3, skip: 100, multiple_estimation: true, input_scaling: unit_variance, "
    "ablation: true, training: {CHANGE}}"
)
MEASURED = {REFERENCE: [100.0, 110.0, 120.0, 500.0], "low": [90.0, 98.0, 108.5], "law": [101.0, 111.5, 119.0]}


def profile(*more: str) -> Params:
    """A profile with two ablation runs: another learning rate, and another law of gamma."""
    changes = {"low": "learning_rate: 1.0e-4", "law": "gamma_law: [2, 1]"}
    overrides = [f"runs.{name}={RUN.replace('CHANGE', change)}" for name, change in changes.items()]
    overrides += ["training.iterations=500", f"runs.{REFERENCE}.training.learning_rate=3e-4"]  # nothing else differs
    return parse(
        compose("tiny", [*overrides, f"ablations.choices={{reference: {REFERENCE}, runs: [low, law]}}", *more]), "tiny"
    )


def rows(fids: dict[str, list[float]]) -> pd.DataFrame:
    """FIDs by run and seed; 2.5 times as much in one step."""
    found = [
        {"run": run, "seed": seed, "steps": steps, "dataset": "unseen", "final": True, "fid": fid * factor}
        for run, values in fids.items()
        for seed, fid in enumerate(values)
        for steps, factor in ((1, 2.5), (2, 1.0), (4, 1.0))
    ]
    return pd.DataFrame(found).reindex(columns=list(COLUMNS))


def row(table: pd.DataFrame, run: str, fid_of: str = REAL) -> pd.Series:
    return where(table, run=run, steps=4, fid_of=fid_of).iloc[0]


def test_factors_are_found_by_comparing_the_runs():
    params = profile("runs.low.training.snapshots=[5]", "runs.law.variant=a law")
    low = params.runs["low"].training.learning_rate
    assert differences(params, "low", REFERENCE) == {"learning_rate": (low, params.training.learning_rate)}
    assert list(differences(params, "law", REFERENCE)) == ["gamma_law"]
    assert list(differences(params, "law", "low")) == ["learning_rate", "gamma_law"]


def test_a_run_like_its_reference_is_an_error_and_a_recipe_has_all_its_factors():
    with pytest.raises(ValueError, match=f"ablations.choices: law does not differ from {REFERENCE}"):
        ablation_table(profile("runs.law.training.gamma_law=[1, 1]"), rows(MEASURED))
    law = row(ablation_table(profile("runs.law.training.ema_decay=0.9"), rows(MEASURED)), "law")
    assert (law["factor"], law["value"]) == ("ema_decay, gamma_law", "0.9, (2.0, 1.0)")


def test_runs_are_paired_with_their_reference_by_seed():
    table = ablation_table(profile(), rows(MEASURED))
    low, logs = row(table, "low"), [math.log(0.9), math.log(98 / 110), math.log(108.5 / 120)]
    assert (low["seeds"], low["estimate"]) == (3, pytest.approx(sum(logs) / 3))
    deviation = math.sqrt(sum((x - sum(logs) / 3) ** 2 for x in logs) / 2)
    assert low["high"] - low["estimate"] == pytest.approx(4.302653 * deviation / math.sqrt(3))
    assert (low["fid"], low["reference_fid"]) == pytest.approx((98.8333, 110.0), rel=1e-5)  # the fourth seed is alone
    assert (low["verdict"], row(table, "law")["verdict"]) == ("better", "within noise")
    worse = rows(MEASURED | {"low": [121.0, 132.0, 143.0]})
    assert row(ablation_table(profile(), worse), "low")["verdict"] == "worse"


def test_what_is_farther_from_real_images_may_be_nearer_to_the_teachers():
    measured = rows(MEASURED)
    table = ablation_table(profile(), measured.assign(fid_teacher=5000 / measured["fid"]))
    real, teacher = row(table, "low"), row(table, "low", fid_of=TEACHER)
    assert (real["verdict"], teacher["verdict"]) == ("better", "worse")
    assert teacher["estimate"] == pytest.approx(-real["estimate"])
    assert teacher["fid"] == pytest.approx(sum(5000 / fid for fid in (90, 98, 108.5)) / 3)
    unknown = row(ablation_table(profile(), measured), "low", fid_of=TEACHER)
    assert unknown["verdict"] == "not measured" and unknown["seeds"] == 0
