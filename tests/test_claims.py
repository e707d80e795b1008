"""Each claim's rule on numbers whose verdict is known beforehand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from synthetic_metrics import baseline_rows, delta_rows, floor_rows, latency_rows, student_rows

from splam import claims
from splam.claims import ABOVE, BELOW, FAILS, HOLDS, MISSING, NOISE, ONE_SEED, Part

EMPTY = pd.DataFrame()


def verdicts(seeds: int, change=lambda rows: rows) -> pd.DataFrame:
    """All claims on synthetic metrics, after `change` of their evaluation rows (index: id, variant)."""
    rng = np.random.default_rng(0)
    rows = change(pd.DataFrame(student_rows(seeds, rng) + baseline_rows()))
    saved = pd.DataFrame(delta_rows(seeds, rng)), pd.DataFrame(latency_rows()), pd.DataFrame(floor_rows())
    return claims.evaluate_claims(rows, *saved).set_index(["id", "variant"])


def runs(values: dict[str, list[float]], steps: int = 4, w: float = 8, **facts: object) -> pd.DataFrame:
    """Rows of LCM (fix w) and SPLAM (scaled input), one FID a seed."""
    rows = []
    for method, fids in values.items():
        variant = "scaled input" if method == "SPLAM" else ""
        for seed, fid in enumerate(fids):
            row = {"run": method, "method": method, "variant": variant, "guidance_scale": w, "skip": 20, "fid": fid}
            rows.append({**row, "seed": seed, "steps": steps, "dataset": "unseen", "final": True, **facts})
    return pd.DataFrame(rows).reindex(columns=list(claims.ROW_COLUMNS))


def data(rows: pd.DataFrame) -> claims.Data:
    return claims._prepare(rows, EMPTY, EMPTY, EMPTY)


def test_t_interval_of_known_numbers():
    low, high = claims.interval((1.0, 2.0, 3.0), 0.95)
    assert (low, high) == pytest.approx((2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)), rel=1e-6)
    assert all(map(math.isnan, claims.interval((1.0,), 0.95)))


@pytest.mark.parametrize(
    ("values", "accept", "verdict"),
    [
        ((-0.10, -0.11, -0.12), BELOW, HOLDS),
        ((0.10, 0.11, 0.12), BELOW, FAILS),
        ((-0.10, 0.11, 0.02), BELOW, NOISE),
        ((-0.10,), BELOW, ONE_SEED),
        ((), BELOW, MISSING),
        ((0.01, -0.01, 0.0), (-0.04, 0.04), HOLDS),
        ((0.05, 0.06, 0.055), (-0.04, 0.04), FAILS),
        ((0.03, 0.06, 0.05), (-0.04, 0.04), NOISE),
    ],
)
def test_a_part_is_judged_by_its_interval(values, accept, verdict):
    assert Part("part", "ln ratio of FID", values, accept).verdict == verdict


def test_equivalence_uses_the_narrower_interval():
    values = (0.0, 0.025, 0.05)
    assert Part("", "", values, (-0.08, 0.08), 0.90).verdict == HOLDS
    assert Part("", "", values, (-0.08, 0.08), 0.95).verdict == NOISE


def test_range_rule_needs_every_seed_and_value_rule_needs_no_seed():
    assert Part("", "", (0.8, 1.0), ABOVE, rule="range").verdict == HOLDS
    assert Part("", "", (-0.2, 1.0), ABOVE, rule="range").verdict == NOISE
    assert Part("", "", (0.3,), ABOVE, rule="value").verdict == HOLDS


def test_a_claim_needs_each_of_its_parts():
    good, bad = Part("", "", (-0.1, -0.11), BELOW, 0.5), Part("", "", (0.1, 0.11), BELOW, 0.5)
    untested, missing = Part("", "", (-0.1,), BELOW), Part("", "", (), BELOW, missing="x")
    assert claims.combine([good, good]) == HOLDS
    assert claims.combine([good, untested]) == ONE_SEED
    assert claims.combine([good, missing, untested]) == MISSING
    assert claims.combine([good, missing, bad]) == FAILS


def test_students_are_paired_by_seed_and_not_by_order():
    a, b = pd.Series({0: 1.0, 2: 3.0}), pd.Series({2: 30.0, 1: 20.0})
    assert claims.pair(a, b, shared=False) == [(3.0, 30.0)]
    teacher = pd.Series({0: 9.0})
    assert claims.pair(a, teacher, shared=True) == [(1.0, 9.0), (3.0, 9.0)]


def test_the_ratio_is_the_geometric_mean_over_seeds():
    rows = runs({"LCM (fix w)": [100.0, 200.0], "SPLAM": [80.0, 180.0]})
    part = claims.compare(data(rows), claims.splam("scaled input", 8, 20), claims.System(claims.LCM, 8, 20), 4)
    assert math.exp(part.estimate) == pytest.approx(math.sqrt(0.8 * 0.9))
    assert f"{math.sqrt(0.72):.3f}" in str(part)


def test_two_runs_for_one_seed_are_an_error_that_names_them():
    rows = runs({"SPLAM": [80.0]})
    twice = pd.concat([rows, rows.assign(run="SPLAM again")])
    with pytest.raises(ValueError, match="SPLAM again"):
        claims.compare(data(twice), claims.splam("scaled input", 8, 20), claims.System(claims.LCM, 8, 20), 4)


def test_multiple_estimation_does_not_matter_at_the_solvers_own_step():
    rows = runs({"SPLAM": [80.0]}, multiple_estimation=True)
    assert len(claims.select(rows, claims.splam("scaled input", 8, 20))) == 1
    far = rows.assign(skip=100)
    assert len(claims.select(far, claims.splam("scaled input", 8, 100, False))) == 0
    assert len(claims.select(far, claims.splam("scaled input", 8, 100, True))) == 1


def test_all_claims_on_the_world_as_the_paper_has_it():
    found = verdicts(3)
    assert list(dict.fromkeys(found.index.get_level_values("id"))) == [f"C{i}" for i in range(1, 19)]
    scaled = {i: v for (i, variant), v in found["verdict"].items() if variant in ("scaled input", "")}
    # The made-up SPLAM is 10 % better than LCM everywhere: too far apart for C2, too weak for C7 (b) and C8.
    expected = {f"C{i}": HOLDS for i in range(1, 19)} | {"C2": FAILS, "C7": FAILS, "C8": FAILS}
    assert scaled == expected
    assert found.loc[("C1", "raw input"), "verdict"] == FAILS
    assert found.loc[("C14", "raw input"), "verdict"] == MISSING
    assert set(found["seeds"].xs("C1")) == {3}


def test_with_one_seed_nothing_is_tested_but_directions_are_shown():
    found = verdicts(1)
    tested = found[~found["verdict"].isin([ONE_SEED, MISSING])]
    assert set(tested.index.get_level_values("id")) == {"C9"}
    assert "(as claimed)" in found.loc[("C1", "scaled input"), "measured"]
    assert "(not as claimed)" in found.loc[("C1", "raw input"), "measured"]


def test_empty_metrics_leave_every_claim_unmeasured_and_say_what_is_missing():
    found = claims.evaluate_claims(EMPTY, EMPTY, EMPTY, EMPTY)
    assert set(found["verdict"]) == {MISSING}
    assert len(found) == 18
    assert found["measured"].str.startswith("not measured: ").all()
    assert "k = 20, w = 8, 1 step, unseen" in found.loc[0, "measured"]


def test_c1_with_one_step_count_lost_is_not_measured_and_names_it():
    found = verdicts(3, lambda r: r[(r["method"] != claims.LCM) | (r["guidance_scale"] != 8) | (r["steps"] != 2)])
    row = found.loc[("C1", "scaled input")]
    assert row["verdict"] == MISSING
    assert "no FID of LCM (fix w), k = 20, w = 8, 2 steps, unseen" in row["measured"]


def test_c3_margin_is_scaled_by_the_range_of_the_clip_score():
    found = claims._prepare(EMPTY, EMPTY, EMPTY, pd.DataFrame(floor_rows()))
    assert claims.clip_margin(found, "unseen") == pytest.approx(0.2 * (80 - 5) / claims.SD_CLIP_RANGE)
    sd = claims.Data(pd.DataFrame({"clip_metric": ["CLIP score (ViT-g-14)"]}), EMPTY, EMPTY, found.floors)
    assert claims.clip_margin(sd, "unseen") == 0.2


def test_c10_slopes_recover_a_power_law_in_k():
    rows = pd.concat(
        runs({"LCM (fix w)": [10.0 * k**0.5], "SPLAM": [10.0 * k**0.2]}, w=3, skip=k, multiple_estimation=False)
        for k in (20, 50, 100)
    )
    parts = claims.c10(data(rows), "scaled input")
    assert [p.estimate for p in parts] == pytest.approx([0.5, 0.2, 0.3])


def test_c13_counts_iterations_and_censors_at_the_end():
    fid = pd.Series({10: 30.0, 20: 12.0, 30: 10.0})
    assert claims.reach(fid, 10.5) == (30.0, False)
    assert claims.reach(fid, 12.0) == (20.0, False)
    assert claims.reach(fid, 5.0) == (30.0, True)


def test_c12_and_c18_read_the_curve_alone():
    found = verdicts(3, lambda r: r[r["dataset"] != "unseen-curve"])
    assert {found.loc[(c, "scaled input"), "verdict"] for c in ("C12", "C13", "C18")} == {MISSING}
    assert found.loc[("C1", "scaled input"), "verdict"] == HOLDS


def test_c14_ignores_runs_trained_at_another_k():
    rng = np.random.default_rng(0)
    delta = pd.DataFrame(delta_rows(1, rng))
    far = delta[delta["method"] == "SPLAM"].assign(run="far", delta_rms=lambda d: d["delta_rms"] * 5)
    rows = pd.DataFrame([{"run": "far", "method": "SPLAM", "variant": "scaled input", "skip": 100}])
    prepared = claims._prepare(rows, pd.concat([delta, far]), EMPTY, EMPTY)
    assert math.exp(claims.c14(prepared, "scaled input")[0].estimate) == pytest.approx(0.9, abs=0.01)


def test_c15_is_spearmans_rho_of_each_seed():
    rows = pd.concat(runs({"SPLAM": [100.0 + w, 200.0 - w]}, w=w, clip_score=w) for w in (3, 5, 8, 12))
    clip, fid = claims.c15(data(rows), "scaled input")
    assert clip.values == pytest.approx((1.0, 1.0))
    assert fid.values == pytest.approx((1.0, -1.0))
    assert (clip.verdict, fid.verdict) == (HOLDS, NOISE)


def test_c9_reports_ratios_and_judges_the_order_alone():
    latency = pd.DataFrame(latency_rows())
    parts = claims.c9(claims._prepare(EMPTY, EMPTY, latency, EMPTY), "")
    assert [math.exp(p.estimate) for p in parts] == pytest.approx([12 / 9, 19 / 12, 259 / 19])
    slow = latency.assign(seconds_median=latency["seconds_median"].where(latency["steps"] != 2, 1.0))
    assert claims.combine(claims.c9(claims._prepare(EMPTY, EMPTY, slow, EMPTY), "")) == FAILS


def test_claims_about_fids_are_asked_of_the_fid_to_the_teacher_too():
    found = verdicts(3)
    told = found["to_teacher_verdict"] != ""
    assert set(found.index[told].get_level_values("id")) == claims.BY_FID
    same = found[told].drop(index=["C4", "C5"], level="id")  # those look at seen combinations, which the teacher lacks
    assert (same["verdict"] == same["to_teacher_verdict"]).all()

    def reverse(rows):  # what is nearer to real images is farther from the teacher's
        return rows.assign(fid_teacher=1e6 / rows["fid_teacher"])

    turned = verdicts(3, reverse)
    assert (turned["verdict"] == found["verdict"]).all()
    assert turned.loc[("C1", "scaled input"), ["verdict", "to_teacher_verdict"]].tolist() == [HOLDS, FAILS]
    alone = verdicts(3, lambda rows: rows.assign(fid_teacher=math.nan))
    assert set(alone.loc[told, "to_teacher_verdict"]) == {MISSING}


def test_every_part_says_what_its_fid_is_measured_against():
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(student_rows(3, rng) + baseline_rows())
    parts = claims.claim_parts(rows, EMPTY, EMPTY, EMPTY).set_index(["id", "fid_of"])
    assert set(parts.index.get_level_values("fid_of")) == {claims.REAL, claims.TEACHER}
    c1 = [parts.loc[("C1", side), ["variant", "part", "values"]].to_numpy().tolist() for side in parts.index.levels[1]]
    assert c1[0] == c1[1], "made-up FIDs to the teacher are 0.8 of those to real images"
