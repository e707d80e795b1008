"""The paper's claims C1 to C18 (claims.yaml), each held to its rule on saved numbers.

Most are lists of comparisons; the functions here test the others. A claim about SPLAM is tested for each variant.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from splam.report import rules
from splam.report.metrics import UNDISTILLED, Metrics, by_seed, expand, steps_text, variants, where
from splam.report.rules import ABOVE, BELOW, CANNOT_TELL, FID_UNIT, REAL, TEACHER, Part, ln_ratio, short, system

CLAIMS: dict[str, dict[str, Any]] = rules.CONTENT["claims"]
SOLVER_SKIP = 20  # k_phi: at this k multiple estimation is one DDIM step, the same as none


def latencies(metrics: Metrics, variant: str) -> Iterator[Part]:
    """C9: the UNet's seconds against its calls, of which a guided step has two; whole latencies beside them."""
    paper = pd.Series({"1 step": 0.09, "2 steps": 0.12, "4 steps": 0.19, "teacher": 2.59})  # Table 2
    rows = where(metrics.latency, method=("SPLAM", "Teacher"))
    rows.index = rows["steps"].map(steps_text).mask(rows["method"] == "Teacher", "teacher")
    rows = rows.assign(calls=rows["steps"] * (1 + (rows["guidance_scale"] > 1)), paper=paper).reindex(paper.index)
    columns, near = ["unet_seconds_median", "calls", "seconds_median", "paper"], (-math.log(1.1), math.log(1.1))
    for fast, slow in itertools.pairwise(paper.index):
        unet, calls, whole, papers = rows.loc[slow, columns] / rows.loc[fast, columns]
        values = (math.log(unet / calls),) if unet > 0 else ()
        note = f"{calls:g} times the calls; the whole {whole:.2f}, the paper's {papers:.2f}" if calls > 0 else ""
        yield Part(f"{slow} / {fast}", "ln ratio of UNet seconds a call", values, near, level=None, note=note)


def slopes(fids: pd.DataFrame) -> pd.Series:
    """Least-squares slope of ln FID on the columns, for each seed that has two points (index: seed)."""
    rows = {seed: row.dropna() for seed, row in fids.iterrows()}
    fits = {s: np.polyfit(row.index, np.log(row), 1)[0] for s, row in rows.items() if len(row) > 1}
    return pd.Series(fits, dtype=float).round(9)  # a flat line's slope is 0, not rounding


def slopes_over_k(metrics: Metrics, variant: str) -> Iterator[Part]:
    """C10: at the k that both have without multiple estimation; the control, in the first's place, is flat over k."""
    rows = where(metrics.rows, final=True, guidance_scale=3, steps=4, dataset="unseen")
    rows = rows[(rows["skip"] <= SOLVER_SKIP) | rows["multiple_estimation"].isin([False])]
    lcm, ours = where(rows, method="LCM (fix w)"), where(rows, method="SPLAM", variant=variant)
    common = tuple(set(lcm["skip"]) & set(ours["skip"]))
    lcm, ours = (by_seed(where(found, skip=common), "fid", "skip") for found in (lcm, ours))
    lcm, ours = (slopes(fids.rename(columns=np.log)) for fids in (lcm, ours))
    found = {"LCM's slope": (lcm, 0 * lcm), "SPLAM's slope": (ours, 0 * ours)}
    found["LCM's slope - SPLAM's"] = (lcm - ours).dropna(), (0 * lcm - ours).dropna()
    for label, (slope, control) in found.items():
        yield Part(label, "slope of ln FID on ln k", tuple(slope), ABOVE).told(**{UNDISTILLED: control})


def curve(metrics: Metrics, name: str, variant: str) -> pd.DataFrame:
    """FID over training on Fig. 2b's sample: a row for each seed, a column for each iteration."""
    return by_seed(where(metrics.rows, dataset="unseen-curve", **system(name, variant)), "fid", "iteration")


def untrained(metrics: Metrics) -> pd.Series:
    """The undistilled network's FID on that sample, at every iteration: the control of claims about training."""
    return by_seed(where(metrics.rows, dataset="unseen-curve", method=UNDISTILLED, guidance_scale=3), "fid")


def overtaken(metrics: Metrics, variant: str) -> Iterator[Part]:
    """C12: at the first and the last iteration at which both were evaluated."""
    ours, lcm = (curve(metrics, name, variant) for name in ("splam-3", "lcm-3"))
    common = sorted(set(ours.columns) & set(lcm.columns))
    ends = (common[0], common[-1]) if len(common) > 1 else (None, None)
    for name, at, accept in zip(("first", "last"), ends, (ABOVE, BELOW), strict=True):
        values = () if at is None else ln_ratio(ours[at], lcm[at])
        note = "" if at is None else f"{at:g} iterations"
        part = Part(f"SPLAM / LCM at the {name} evaluation", FID_UNIT, values, accept, note=note)
        yield part.told(**{UNDISTILLED: () if at is None else ln_ratio(untrained(metrics), lcm[at])})


def reach(fids: pd.DataFrame, goals: pd.Series) -> pd.Series:
    """The iteration at which each seed's FID comes down to its goal, interpolated, or else the last one."""
    found = {}
    for seed, row in fids[fids.index.isin(goals.index)].dropna(how="all").iterrows():
        row = row.dropna()
        there = row.index[row <= goals[seed]]
        span = row.loc[: there[0]].iloc[-2:] if len(there) else row.iloc[-1:]
        found[seed] = np.interp(goals[seed], span[::-1], span.index[::-1])
    return pd.Series(found, dtype=float)


def convergence(metrics: Metrics, variant: str) -> Iterator[Part]:
    """C13: iterations of SPLAM k = 100 + ME over those of the others; a run that never gets there is censored."""
    names = ("splam-3-k100-me", "splam-3", "lcm-3", "lcm-3-k100-me")
    curves = {name: curve(metrics, name, variant) for name in names}
    few = "curves of at least 12 points" * (min(len(curves[name].columns) for name in names[:3]) < 12)
    control = untrained(metrics)
    goals = 1.05 * curves["lcm-3"].min(axis=1)
    goals = goals[~(control.reindex(goals.index) <= goals)]  # not where the undistilled network is there
    never = 0 * control + curves["splam-3-k100-me"].columns.max()  # for it stays where it is
    censored = {n: int((fids.min(axis=1) > goals.reindex(fids.index)).sum()) for n, fids in curves.items()}
    (first, ours), *others = ((name, reach(fids, goals)) for name, fids in curves.items())
    for name, slow in others:
        late = censored[first], censored[name]
        note = "{} and {} censored".format(*late) if any(late) else ""
        label, judged = f"SPLAM k = 100 + ME / {short(system(name, ''))}", name != "lcm-3-k100-me"
        facts = {"note": note, "missing": few, "judged": judged}
        if judged or len(slow):
            part = Part(label, "ln ratio of iterations", ln_ratio(ours, slow), BELOW, **facts)
            yield part.told(**{UNDISTILLED: ln_ratio(never, slow)})


def neighbours(metrics: Metrics, variant: str) -> Iterator[Part]:
    """C14: with the ratio of x0 errors beside it, since a constant map has delta = 0."""
    rows = metrics.delta[(metrics.delta["t"] >= 119) & (metrics.delta["skip"].fillna(20) == 20)]
    ours, lcm = where(rows, method="SPLAM", variant=variant), where(rows, method="LCM (fix w)")
    scale = min(set(ours["guidance_scale"]) & set(lcm["guidance_scale"]), default=None)
    sides = [where(side, guidance_scale=scale) for side in (ours, lcm)] + [where(rows, method=UNDISTILLED)]
    for name, at in (("summed over t", {}), ("at t = 799", {"t": 799})):
        found = [where(side, **at).groupby("seed")[["delta_rms", "x0_error_rms"]].sum() for side in sides]
        values, errors = (ln_ratio(found[0][column], found[1][column]) for column in found[0])
        note = f"x0 error ratio {math.exp(np.mean(errors)):.3f}; the paper: about 0.9 at t = 800" if values else ""
        part = Part(f"delta {name}", "ln ratio of delta", values, BELOW, note=note)
        yield part.told(**{UNDISTILLED: ln_ratio(found[2]["delta_rms"], found[1]["delta_rms"])})


def guidance_trend(metrics: Metrics, variant: str) -> Iterator[Part]:
    """C15: at the k that was measured at most w; of only three w no three seeds could tell."""
    rows = where(metrics.rows, final=True, method="SPLAM", variant=variant, steps=4, dataset="unseen")
    rows = rows[(rows["skip"] <= SOLVER_SKIP) | rows["multiple_estimation"].isin([True])]
    if len(rows):
        rows = where(rows, skip=rows.groupby("skip")["guidance_scale"].nunique().idxmax())
    for name, column in (("CLIP score", "clip_score"), ("FID", "fid")):
        found = (row.dropna() for _, row in by_seed(rows, column, "guidance_scale").iterrows())
        enough = [row for row in found if {3, 12} <= set(row.index) and len(row) > 3]
        rho = tuple(float(stats.spearmanr(row.index, row).statistic) for row in enough)
        sides = [[exact_p(row, side) for row in enough] for side in ("greater", "less")] if enough else ()
        p = tuple(float(stats.combine_pvalues(values, "fisher").pvalue) for values in sides) or None
        yield Part(f"rho of w and {name}", "Spearman's rho", rho, ABOVE, p=p)


def exact_p(row: pd.Series, side: str) -> float:
    """Of the rank correlation of values with their index, over all permutations."""
    ranks, every = (stats.rankdata(row.index), stats.rankdata(row)), stats.PermutationMethod(n_resamples=math.inf)
    return float(stats.pearsonr(*ranks, alternative=side, method=every).pvalue)


def late_slopes(metrics: Metrics, variant: str) -> Iterator[Part]:
    """C18: over the last third of training, in which the undistilled network is flat."""
    for label, name, accept in (("LCM's", "lcm-3", ABOVE), ("SPLAM's", "splam-3", BELOW)):
        fids = curve(metrics, name, variant)
        late = fids.loc[:, fids.columns >= fids.columns.max() * 2 / 3]
        slope = slopes(late.rename(columns=lambda iteration: iteration / 1000))
        unit = "slope of ln FID per 1,000 iterations"
        yield Part(f"{label} slope in the last third", unit, tuple(slope), accept).told(**{UNDISTILLED: 0 * slope})


TESTS = (latencies, slopes_over_k, overtaken, convergence, neighbours, guidance_trend, late_slopes)


def parts_of(claim: dict[str, Any], metrics: Metrics, variant: str) -> list[Part]:
    """The comparisons of one of CLAIMS, for one variant of SPLAM."""
    if "test" in claim:
        test = next(function for function in TESTS if function.__name__ == claim["test"])
        return [part if part.values else replace(part, missing=claim["needs"]) for part in test(metrics, variant)]
    entries = [entry for several in claim["compare"] for entry in expand(several)]
    return [part for entry in entries for part in rules.compare(metrics, entry, variant)]


def judge(metrics: Metrics) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The verdict on each claim and SPLAM variant (claims.csv), and every part behind them (claims_parts.csv).

    A verdict's estimate, interval, region and unit are those of the part that settles it; seeds: the fewest of any
    measured part; parts, can_tell: how many were measured and judged, and how many of these no control passes.
    to_teacher_*, and parts with fid_of TEACHER: the same rule with the FID to the teacher's images.
    """
    verdicts, records = [], []
    to_teacher = metrics.rows.assign(fid=metrics.rows["fid_teacher"].astype(float)).dropna(subset=["fid"])
    for name, claim in CLAIMS.items():
        for variant in (variants(metrics.rows) if claim.get("about_splam", True) else []) or [""]:
            key, parts = {"id": name, "variant": variant}, parts_of(claim, metrics, variant)
            again = parts_of(claim, replace(metrics, rows=to_teacher), variant) if claim.get("by_fid", True) else []
            again = [part for part in again if part.unit != rules.NAMES["clip_score"][1]]  # which knows no teacher
            verdicts.append({**key, "claim": claim["text"], "where": claim["where"], **_verdict(parts, again)})
            for fid_of, side in ((REAL, parts), (TEACHER, again)):
                for part in side:
                    own = variant if "test" in claim or "SPLAM" in part.label else ""  # LCM's are the same for each
                    records.append({**key, "variant": own, "fid_of": fid_of, **part.record()})
    verdicts, parts = (pd.DataFrame(found).astype({"seeds": "Int64"}) for found in (verdicts, records))
    return verdicts, parts.drop_duplicates(["id", "variant", "fid_of", "part"])


def _verdict(parts: list[Part], again: list[Part]) -> dict[str, object]:
    seeds = [len(part.values) for part in parts if part.values and part.level]
    found = {"measured": rules.describe(parts), **rules.decisive(parts).record(), "seeds": min(seeds, default=None)}
    judged = [part for part in parts if part.judged and part.verdict != rules.MISSING]
    found |= {"parts": len(judged), "can_tell": sum(part.verdict != CANNOT_TELL for part in judged)}
    found |= {"to_teacher_verdict": rules.decisive(again).verdict if again else ""}
    return found | {"to_teacher_measured": rules.describe(again)}
