"""Each claim's rule on numbers whose verdict is known beforehand."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from splam.report import rules
from splam.report.claims import CLAIMS, judge, parts_of, reach
from splam.report.metrics import COLUMNS, Metrics, load_metrics, where
from splam.report.rules import ABOVE, BELOW, CANNOT_TELL, FAILS, FEW_SEEDS, HOLDS, MISSING, NOISE, Part
from tests.report.synthetic import write_metrics

RATIO = "ln ratio of FID"


def verdicts(metrics: Metrics, change=lambda rows: rows) -> pd.DataFrame:
    """All claims after `change` of the evaluation rows (index: id, variant)."""
    return judge(dataclasses.replace(metrics, rows=change(metrics.rows)))[0].set_index(["id", "variant"])


def runs(fids: dict[str, list[float]], steps: int = 4, w: float = 8, **facts: object) -> pd.DataFrame:
    """Rows of LCM (fix w) and SPLAM (scaled input), one FID a seed."""
    rows = []
    for method, values in fids.items():
        variant = "scaled input" if method == "SPLAM" else ""
        head = {"run": method, "method": method, "variant": variant, "guidance_scale": w, "skip": 20}
        head |= {"steps": steps, "dataset": "unseen", "final": True, "multiple_estimation": False}
        rows += [{**head, "fid": fid, "seed": seed, **facts} for seed, fid in enumerate(values)]
    return pd.DataFrame(rows).reindex(columns=list(COLUMNS))


def parts(claim: str, metrics: Metrics, **frames: pd.DataFrame) -> list[Part]:
    return parts_of(CLAIMS[claim], dataclasses.replace(metrics, **frames), "scaled input")


@pytest.mark.parametrize(
    ("values", "accept", "how", "verdict"),
    [
        ((-0.10, -0.11, -0.12), BELOW, {}, HOLDS),
        ((0.10, 0.11, 0.12), BELOW, {}, FAILS),
        ((-0.10, 0.11, 0.02), BELOW, {}, NOISE),
        ((-0.10, -0.11), BELOW, {}, FEW_SEEDS),
        ((0.0, 0.025, 0.05), (-0.08, 0.08), {}, NOISE),
        ((0.0, 0.025, 0.05), (-0.08, 0.08), {"level": 0.90}, HOLDS),  # equivalence: the narrower interval
        ((0.8, 1.0, 1.0), ABOVE, {"p": (0.01, 0.99)}, HOLDS),
        ((-0.2, 1.0, 0.1), ABOVE, {"p": (0.2, 0.8)}, NOISE),
        ((0.3,), ABOVE, {"level": None}, HOLDS),
    ],
)
def test_a_part_is_judged_by_its_interval(values, accept, how, verdict):
    assert Part("part", RATIO, values, accept, **how).verdict == verdict


def test_a_claim_needs_each_of_its_parts():
    good, bad = Part("", "", (-0.1, -0.11, -0.12), BELOW), Part("", "", (0.1, 0.11, 0.12), BELOW)
    untested, missing = Part("", "", (-0.1,), BELOW), Part("", "", (), BELOW, missing="x")
    blind, beside = good.told(Undistilled=(-0.1, -0.2, -0.15)), dataclasses.replace(bad, judged=False)
    assert rules.decisive([good, good, blind, beside]).verdict == HOLDS
    assert rules.decisive([blind, blind]).verdict == CANNOT_TELL
    assert rules.decisive([good, untested]).verdict == FEW_SEEDS
    assert rules.decisive([good, missing, untested]).verdict == MISSING
    assert rules.decisive([good, missing, bad]).verdict == FAILS


def test_a_student_is_compared_with_the_teacher_of_its_own_seed(empty):
    rows = [runs({"Teacher": [100.0, 50.0]}, 50, skip=math.nan), runs({"SPLAM": [80.0, 45.0, 1.0]}, skip=100)]
    rows[1] = rows[1].assign(multiple_estimation=True)
    part = parts("C8", empty, rows=pd.concat(rows))[1]
    assert part.values == pytest.approx((math.log(0.8), math.log(0.9)))
    assert str(part).startswith("SPLAM / Teacher, 4 / 50 steps, w = 8, unseen: ratio of FID 0.849 [")
    assert part.accept == pytest.approx((-math.inf, math.log(1.026)))


def test_multiple_estimation_matters_beyond_the_solvers_own_step_alone(empty):
    for me in (True, False):
        near, far = (runs({"SPLAM": [80.0]}, w=3, skip=k).assign(multiple_estimation=me) for k in (20, 100))
        assert len(where(near, **rules.system("splam-3", "scaled input"))) == 1
        assert len(where(far, **rules.system("splam-3-k100-me", "scaled input"))) == me
        assert len(where(far, **rules.system("splam-3-k100", "scaled input"))) == 1 - me


def test_all_claims_on_the_world_as_the_paper_has_it(report):
    found = report.verdicts.set_index(["id", "variant"])
    assert list(dict.fromkeys(found.index.get_level_values("id"))) == [f"C{i}" for i in range(1, 19)]
    scaled = {i: v for (i, variant), v in found["verdict"].items() if variant in ("scaled input", "")}
    # The made-up SPLAM is 10 % better than LCM everywhere: too far apart for C2, too weak for C7 (b) and C8.
    assert scaled == {f"C{i}": HOLDS for i in range(1, 19)} | {"C2": FAILS, "C7": FAILS, "C8": FAILS}
    assert found.loc[("C1", "raw input"), "verdict"] == FAILS
    assert found.loc[("C14", "raw input"), "verdict"] == MISSING
    assert set(found["seeds"].xs("C1")) == {3}


def test_no_claim_holds_of_a_network_that_was_never_distilled(metrics):
    """The undistilled network's rows, entered as SPLAM's: what it passes cannot tell, whatever else it passes."""
    same = ["dataset", "steps", "guidance_scale", "seed"]
    start = where(metrics.rows, method="Undistilled").set_index(same)[["fid", "fid_teacher", "clip_score"]]

    def enter(rows: pd.DataFrame) -> pd.DataFrame:
        ours = rows["method"].eq("SPLAM") & rows["dataset"].isin(["unseen", "unseen-small", "seen"])
        values = start.reindex(pd.MultiIndex.from_frame(rows.loc[ours, same]))
        return rows.assign(**{c: rows[c].mask(ours, pd.Series(values[c].to_numpy(), rows.index[ours])) for c in values})

    found = verdicts(metrics, enter).xs("scaled input", level="variant")["verdict"]
    assert not (found.drop(["C12", "C13", "C14", "C18"]) == HOLDS).any()  # those are about curves and delta


def test_with_one_seed_nothing_is_tested_but_directions_are_shown(tmp_path):
    metrics = load_metrics(write_metrics(tmp_path / "tiny", seeds=1) / "metrics")
    found = verdicts(metrics, lambda rows: rows.assign(fid_teacher=math.nan))
    assert set(found["to_teacher_verdict"]) == {MISSING, ""}
    tested = found[~found["verdict"].isin([FEW_SEEDS, MISSING])]
    assert set(tested.index.get_level_values("id")) == {"C9"}
    assert "(as claimed)" in found.loc[("C1", "scaled input"), "measured"]
    assert "(not as claimed)" in found.loc[("C1", "raw input"), "measured"]


def test_empty_metrics_leave_every_claim_unmeasured_and_say_what_is_missing(empty):
    found = verdicts(empty)
    assert set(found["verdict"]) == {MISSING} and len(found) == 18
    assert found["measured"].str.startswith("not measured: ").all()
    assert "SPLAM k = 20, w = 8, 1 step, unseen" in found.loc[("C1", ""), "measured"]


def test_c3_margin_is_scaled_by_the_range_of_the_clip_score(metrics):
    assert all(part.accept == pytest.approx((-0.2 * 75 / 25, 0.2 * 75 / 25)) for part in parts("C3", metrics))
    named = metrics.evaluations.assign(clip_name="CLIP score (ViT-g-14)")
    assert {part.accept for part in parts("C3", metrics, evaluations=named)} == {(-0.2, 0.2)}


def test_seen_combinations_count_where_both_were_drawn_for_them(metrics):
    assert len(parts("C4", metrics)) == 6
    less = where(metrics.rows, dataset=("unseen", "unseen-small"))
    assert len(parts("C4", metrics, rows=less)) == 3
    assert {part.verdict for part in parts("C2", metrics, rows=less)} == {MISSING}


def test_c10_slopes_recover_a_power_law_in_k(empty):
    """Beside a SPLAM that improves with k, the undistilled network, flat in LCM's place, worsens more as well."""
    for power, told in ((0.2, [HOLDS, HOLDS, HOLDS]), (-0.2, [HOLDS, FAILS, CANNOT_TELL])):
        fids = {k: {"LCM (fix w)": [10.0 * k**0.5] * 3, "SPLAM": [10.0 * k**power] * 3} for k in (20, 50, 100)}
        found = parts("C10", empty, rows=pd.concat(runs(both, w=3, skip=k) for k, both in fids.items()))
        assert [part.estimate for part in found] == pytest.approx([0.5, power, 0.5 - power])
        assert [part.verdict for part in found] == told


def test_c11_reports_k_200_without_judging_it(empty):
    fids = {20: [100.0, 101.0, 99.0], 100: [100.0, 101.0, 99.5], 200: [300.0, 310.0, 305.0]}
    rows = [runs({"SPLAM": values}, w=3, skip=k).assign(multiple_estimation=True) for k, values in fids.items()]
    near, far = parts("C11", empty, rows=pd.concat(rows))
    assert near.level == 0.90 and near.accept == pytest.approx((-math.log(1.1), math.log(1.1)))
    assert rules.decisive([near, far]).verdict == HOLDS
    assert str(far).startswith("SPLAM k = 200 + ME / SPLAM k = 20, 4 steps, w = 3, unseen: ratio of FID 3.0")
    assert len(parts("C11", empty, rows=pd.concat(rows[:2]))) == 1


def test_c13_counts_iterations_and_censors_at_the_end():
    fids = pd.DataFrame({10: [30.0, 30.0, 9.0], 20: [12.0, 12.0, 9.0], 30: [10.0, np.nan, 9.0]})
    assert list(reach(fids, pd.Series([10.5, 10.0, 9.0]))) == [27.5, 20.0, 10.0]


def test_c13_of_a_variant_without_a_curve_is_not_measured(metrics):
    """Though the undistilled network has one."""
    found = parts("C13", metrics, rows=metrics.rows[metrics.rows["variant"] != "scaled input"])
    assert {part.verdict for part in found} == {MISSING}


def test_c14_ignores_runs_trained_at_another_k(metrics):
    far = where(metrics.delta, method="SPLAM").assign(run="far", skip=100, delta_rms=99.0)
    found = parts("C14", metrics, delta=pd.concat([metrics.delta, far]))
    assert math.exp(found[0].estimate) == pytest.approx(0.9, abs=0.01)


def test_c15_is_spearmans_rho_of_each_seed(empty):
    """And of Fisher's method over seeds, of p that are exact: 1 / 4! where all four are in order."""
    rows = pd.concat(runs({"SPLAM": [100 + w, 200 - w, 90 - w]}, w=w, clip_score=w) for w in (3, 5, 8, 12))
    clip, fid = parts("C15", empty, rows=rows)
    assert clip.values == pytest.approx((1, 1, 1)) and fid.values == pytest.approx((1, -1, -1))
    assert clip.p[0] == pytest.approx(stats.chi2.sf(-2 * 3 * math.log(1 / 24), 6))
    assert (clip.verdict, fid.verdict) == (HOLDS, FAILS)


def test_c9_counts_a_guided_step_as_two_calls_of_the_unet(metrics):
    found = parts("C9", metrics)
    assert [part.estimate for part in found] == pytest.approx([0, 0, 0], abs=1e-9)
    assert rules.decisive(found).verdict == HOLDS
    assert "25 times the calls" in str(found[2]) and "the whole 13.63, the paper's 13.63" in str(found[2])
    slow = metrics.latency.assign(
        unet_seconds_median=lambda rows: rows["unet_seconds_median"] * (1 + rows["steps"] / 9)
    )
    assert rules.decisive(parts("C9", metrics, latency=slow)).verdict == FAILS
    assert {part.verdict for part in parts("C9", metrics, latency=metrics.latency.head(0))} == {MISSING}


def test_claims_about_fids_are_asked_of_the_fid_to_the_teacher_too(metrics, report):
    found = report.verdicts.set_index(["id", "variant"])
    told = found["to_teacher_verdict"] != ""
    assert set(found.index[told].get_level_values("id")) == {n for n, c in CLAIMS.items() if c.get("by_fid", True)}
    same = found[told].drop(index=["C4", "C5"], level="id")  # those look at seen combinations, which the teacher lacks
    assert (same["verdict"] == same["to_teacher_verdict"]).all()
    turned = verdicts(metrics, lambda rows: rows.assign(fid_teacher=1e6 / rows["fid_teacher"]))
    assert (turned["verdict"] == found["verdict"]).all()
    assert turned.loc[("C1", "scaled input"), ["verdict", "to_teacher_verdict"]].tolist() == [HOLDS, CANNOT_TELL]
