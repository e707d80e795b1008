"""The paper's claims C1-C18, each computed by its own rule from saved numbers.

A claim is one function that returns its parts; a part is one number a seed and the region the claim says it
lies in. A part holds if its interval over seeds lies inside the region, does not hold if it lies wholly outside,
and is within noise otherwise; a claim needs each of its parts. Claims about SPLAM are tested once for each way
of feeding the student ("raw input", "scaled input", ...) that was measured.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats

HOLDS, FAILS, NOISE = "holds", "does not hold", "within noise"
ONE_SEED, MISSING = "one seed, not tested", "not measured"
VERDICTS = (HOLDS, NOISE, FAILS, ONE_SEED, MISSING)

ROW_COLUMNS = (
    *("system", "run", "method", "variant", "guidance_scale", "skip", "multiple_estimation", "seed", "iteration"),
    *("final", "steps", "dataset", "images", "fid", "kid", "precision", "recall", "clip_score", "paired_distance"),
    "fid_teacher",  # FID to the teacher's images
    "clip_score_beside",  # of a second model; no claim looks at it
    "clip_metric",  # the protocol's name of the CLIP score
)
DELTA_COLUMNS = (
    *("run", "method", "variant", "guidance_scale", "seed", "t", "delta_rms", "delta_rms_se", "delta_l2"),
    *("delta_l2_se", "x0_error_rms", "images"),
)
LATENCY_COLUMNS = ("method", "steps", "seconds_median", "seconds")

SOLVER_SKIP = 20  # k_phi: at this k multiple estimation is one DDIM step, the same as none
UNTRAINED = ("DDIM", "DPM-Solver", "DPM-Solver++", "UniPC", "Teacher")  # one evaluation serves every student's seed
LCM = "LCM (fix w)"
TABLE1_SETS = ("unseen", "seen")
REAL, TEACHER = "real images", "the teacher's images"  # what an FID is measured against
BELOW, ABOVE = (-math.inf, 0.0), (0.0, math.inf)
SD_CLIP_MARGIN = 0.2
SD_CLIP_RANGE = 25.0  # assumed range of Stable Diffusion's CLIP score: Table 1's best, 31.5, less its noise, about 6


@dataclass(frozen=True)
class Data:
    """What the claims are tested on: evaluations, delta(t, k), latencies and floors, as saved by the stages."""

    rows: pd.DataFrame
    delta: pd.DataFrame
    latency: pd.DataFrame
    floors: pd.DataFrame


@dataclass(frozen=True)
class System:
    """A method at one guidance scale w; students also have k, multiple estimation and a variant."""

    method: str
    guidance_scale: float
    skip: int | None = None
    multiple_estimation: bool = False
    variant: str = ""

    def __str__(self) -> str:
        name = f"{self.method} ({self.variant})" if self.variant else self.method
        path = "" if self.skip is None else f", k = {self.skip}" + (" + ME" if self.multiple_estimation else "")
        return f"{name}{path}, w = {self.guidance_scale:g}"


def splam(variant: str, guidance_scale: float, skip: int, multiple_estimation: bool = False) -> System:
    """SPLAM in one of its variants."""
    return System("SPLAM", guidance_scale, skip, multiple_estimation, variant)


def _named(variant: str) -> str:
    return f"SPLAM ({variant})" if variant else "SPLAM"


def interval(values: tuple[float, ...], level: float) -> tuple[float, float]:
    """Student's t interval for the mean of values; (nan, nan) for fewer than two."""
    if len(values) < 2:
        return math.nan, math.nan
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return float(np.mean(values) - half), float(np.mean(values) + half)


@dataclass(frozen=True)
class Part:
    """One comparison of a claim: a number a seed, and the open region `accept` that the claim says it lies in.

    rule: "t" takes the t interval over seeds, "range" every seed for itself, "value" the one number as it is.
    """

    label: str
    unit: str
    values: tuple[float, ...]
    accept: tuple[float, float]
    level: float = 0.95
    rule: Literal["t", "range", "value"] = "t"
    missing: str = ""
    note: str = ""

    @property
    def estimate(self) -> float:
        """The mean over seeds."""
        return float(np.mean(self.values)) if self.values else math.nan

    @cached_property
    def bounds(self) -> tuple[float, float]:
        """The interval that is compared with `accept`; nan where it cannot be computed."""
        if self.rule == "value" and self.values:
            return self.values[0], self.values[0]
        if self.rule == "range" and len(self.values) > 1:
            return min(self.values), max(self.values)
        return interval(self.values, self.level)

    @property
    def verdict(self) -> str:
        """One of VERDICTS."""
        if self.missing or not self.values:
            return MISSING
        low, high = self.bounds
        if math.isnan(low):
            return ONE_SEED
        if self.accept[0] < low and high < self.accept[1]:
            return HOLDS
        return FAILS if low > self.accept[1] or high < self.accept[0] else NOISE

    @property
    def excess(self) -> float:
        """How far the estimate lies outside the claimed region; negative inside."""
        return max(self.accept[0] - self.estimate, self.estimate - self.accept[1])

    @property
    def lacks(self) -> str:
        """What an unmeasured part needs."""
        return self.missing or f"a seed that both sides of '{self.label}' share"

    def __str__(self) -> str:
        if self.verdict == MISSING:
            return f"{MISSING}: {self.lacks}"
        is_ratio = self.unit.startswith("ln ratio")
        name = self.unit.removeprefix("ln ") if is_ratio else self.unit

        def show(value: float) -> str:
            return f"{math.exp(value):.3f}" if is_ratio else f"{value:+.3g}"

        low, high = self.bounds
        if self.rule == "value":
            spread = ""
        elif math.isnan(low):
            spread = " (as claimed)" if self.excess < 0 else " (not as claimed)"
        else:
            spread = f" [{show(low)}, {show(high)}]"
        return f"{self.label}: {name} {show(self.estimate)}{spread}{self.note}"


def select(rows: pd.DataFrame, system: System, **where: object) -> pd.DataFrame:
    """Rows of one system whose columns equal `where`; at k = k_phi, with and without ME are the same thing."""
    keep = (rows["method"] == system.method) & (rows["guidance_scale"] == system.guidance_scale)
    if system.variant:
        keep &= rows["variant"] == system.variant
    if system.skip is not None:
        keep &= rows["skip"] == system.skip
        if system.skip > SOLVER_SKIP:
            keep &= rows["multiple_estimation"].isin([system.multiple_estimation])
    for column, value in where.items():
        keep &= rows[column] == value
    return rows[keep]


def by_seed(rows: pd.DataFrame, column: str) -> pd.Series:
    """One value for each seed (index: seed); ValueError if two runs claim the same seed."""
    rows = rows.dropna(subset=[column])
    seeds = rows["seed"].fillna(-1).astype(int)
    if seeds.duplicated().any():
        runs = ", ".join(sorted(map(str, rows["run"].unique())))
        raise ValueError(f"several rows for one seed among the runs {runs}: give them variants or drop one")
    return pd.Series(rows[column].to_numpy(float), index=seeds.to_numpy())


def pair(a: pd.Series, b: pd.Series, shared: bool) -> list[tuple[float, float]]:
    """(a, b) for each seed of a; where b has a single row and is `shared`, that row serves every seed."""
    if shared and len(b) == 1:
        return [(value, b.iloc[0]) for value in a]
    return [(a[seed], b[seed]) for seed in a.index if seed in b.index]


def ln_ratio(pairs: list[tuple[float, float]]) -> tuple[float, ...]:
    """ln(a / b) of each pair."""
    return tuple(math.log(a / b) for a, b in pairs)


def difference(pairs: list[tuple[float, float]]) -> tuple[float, ...]:
    """a - b of each pair."""
    return tuple(a - b for a, b in pairs)


def final_rows(data: Data) -> pd.DataFrame:
    """Evaluations of finished runs and of baselines."""
    return data.rows[~data.rows["final"].isin([False])]


def compare(
    data: Data,
    a: System,
    b: System,
    steps: int | tuple[int, int],
    dataset: str = "unseen",
    accept: tuple[float, float] = BELOW,
    level: float = 0.95,
    metric: Literal["fid", "clip_score"] = "fid",
) -> Part:
    """The default rule's part: ln(FID_a / FID_b), or the CLIP scores' difference, paired by seed.

    steps: of both systems, or of a and of b.
    """
    steps_a, steps_b = steps if isinstance(steps, tuple) else (steps, steps)
    rows = final_rows(data)
    name, unit = ("FID", "ln ratio of FID") if metric == "fid" else ("CLIP score", "CLIP score difference")
    label = _label(a, b, steps_a, steps_b, dataset, metric)
    both = []
    for system, count in ((a, steps_a), (b, steps_b)):
        found = by_seed(select(rows, system, steps=count, dataset=dataset), metric)
        if found.empty:
            return Part(label, unit, (), accept, missing=f"no {name} of {system}, {_steps(count)}, {dataset}")
        both.append(found)
    pairs = pair(*both, shared=b.method in UNTRAINED)
    values = ln_ratio(pairs) if metric == "fid" else difference(pairs)
    return Part(label, unit, values, accept, level)


def _steps(count: int) -> str:
    return f"{count} step" + "s" * (count > 1)


def _short(system: System) -> str:
    return system.method + (f" k = {system.skip}" if system.skip else "") + " + ME" * system.multiple_estimation


def _label(a: System, b: System, steps_a: int, steps_b: int, dataset: str, metric: str) -> str:
    """'SPLAM / LCM (fix w), 2 steps, w = 8, unseen', with k where one method is compared with itself."""
    names = (_short(a), _short(b)) if a.method == b.method else (a.method, b.method)
    steps = _steps(steps_a) if steps_a == steps_b else f"{steps_a} / {_steps(steps_b)}"
    sign = "/" if metric == "fid" else "-"
    return f"{names[0]} {sign} {names[1]}, {steps}, w = {a.guidance_scale:g}, {dataset}"


def _both_measured(data: Data, a: System, b: System) -> tuple[str, ...]:
    """Table 1's test sets on which both systems were evaluated; the held-out one if there is none."""
    rows = final_rows(data)
    sets = tuple(d for d in TABLE1_SETS if all(len(select(rows, s, dataset=d)) for s in (a, b)))
    return sets or TABLE1_SETS[:1]


def c1(data: Data, variant: str) -> list[Part]:
    """SPLAM / LCM (fix w), k = 20, w = 8, held-out set: below 0 at 1, 2 and 4 steps."""
    return [compare(data, splam(variant, 8, 20), System(LCM, 8, 20), n) for n in (1, 2, 4)]


def c2(data: Data, variant: str) -> list[Part]:
    """As C1 on seen combinations, TOST: the 90 % interval of the ln ratio inside +-ln 1.04, each step."""
    margin = (-math.log(1.04), math.log(1.04))
    systems = splam(variant, 8, 20), System(LCM, 8, 20)
    return [compare(data, *systems, n, "seen", margin, 0.90) for n in (1, 2, 4)]


def clip_margin(data: Data, dataset: str) -> float:
    """0.2 for Stable Diffusion's CLIP score; elsewhere 0.2 of SD_CLIP_RANGE's share of real - shuffled captions."""
    if data.rows["clip_metric"].astype(str).str.contains("ViT-g-14").any():
        return SD_CLIP_MARGIN
    scores = data.floors[data.floors["dataset"] == dataset].set_index("method")["clip_score"]
    real, shuffled = (scores.get("Real images", math.nan), scores.get("Shuffled captions", math.nan))
    return SD_CLIP_MARGIN * float(real - shuffled) / SD_CLIP_RANGE


def c3(data: Data, variant: str) -> list[Part]:
    """CLIP score of SPLAM - LCM (fix w), w = 8, TOST inside +-0.2 (scaled by real - shuffled captions, Stable
    Diffusion's range assumed to be 25), at each step, on each test set where both were evaluated.
    """
    parts = []
    systems = splam(variant, 8, 20), System(LCM, 8, 20)
    for dataset in _both_measured(data, *systems):
        margin = clip_margin(data, dataset)
        for n in (1, 2, 4):
            part = compare(data, *systems, n, dataset, (-margin, margin), 0.90, "clip_score")
            if math.isnan(margin) and not part.missing:
                part = Part(part.label, part.unit, (), part.accept, missing=f"CLIP score floors of {dataset}")
            parts.append(part)
    return parts


def c4(data: Data, variant: str) -> list[Part]:
    """LCM (fix w) / LCM*, k = 20, w = 8: below 0 at each step, on each test set where both were evaluated."""
    a, b = System(LCM, 8, 20), System("LCM*", 8, 20)
    return [compare(data, a, b, n, dataset) for dataset in _both_measured(data, a, b) for n in (1, 2, 4)]


def c5(data: Data, variant: str) -> list[Part]:
    """Each student against each of DDIM, DPM-Solver(++), w = 8, 1, 2 and 4 steps: FID below, CLIP score above.

    On each test set where both were evaluated.
    """
    parts = []
    for student in (System("LCM*", 8, 20), System(LCM, 8, 20), splam(variant, 8, 20)):
        for solver in (System(name, 8) for name in ("DDIM", "DPM-Solver", "DPM-Solver++")):
            for dataset in _both_measured(data, student, solver):
                for n in (1, 2, 4):
                    parts.append(compare(data, student, solver, n, dataset))
                    parts.append(compare(data, student, solver, n, dataset, ABOVE, metric="clip_score"))
    return parts


def c6(data: Data, variant: str) -> list[Part]:
    """SPLAM (k = 100, ME) / LCM, w = 3: below 0 at 2 and 4 steps, on the larger and the smaller sample."""
    systems = splam(variant, 3, 100, True), System(LCM, 3, 20)
    return [compare(data, *systems, n, dataset) for dataset in ("unseen", "unseen-small") for n in (2, 4)]


def c7(data: Data, variant: str) -> list[Part]:
    """w = 8: (a) as C6; (b) SPLAM in 2 steps / LCM in 4: upper end of the 95 % interval below ln 1.02."""
    systems = splam(variant, 8, 100, True), System(LCM, 8, 20)
    no_worse = compare(data, *systems, (2, 4), accept=(-math.inf, math.log(1.02)))
    return [compare(data, *systems, n) for n in (2, 4)] + [no_worse]


def c8(data: Data, variant: str) -> list[Part]:
    """4-step SPLAM / teacher (50 steps): upper end of the 95 % interval below 1.253 at w = 3, 1.026 at w = 8."""
    parts = []
    for w, limit in ((3, 1.253), (8, 1.026)):
        accept = (-math.inf, math.log(limit))
        parts.append(compare(data, splam(variant, w, 100, True), System("Teacher", w), (4, 50), accept=accept))
    return parts


def c9(data: Data, variant: str) -> list[Part]:
    """Median latencies rise from 1 to 2 to 4 steps to the teacher; ratios to one step are reported, not judged."""
    medians = data.latency.set_index(["method", "steps"])["seconds_median"]
    teacher = data.latency.loc[data.latency["method"] == "Teacher", "seconds_median"]
    times = {_steps(n): medians.get(("SPLAM", n), math.nan) for n in (1, 2, 4)}
    times["teacher"] = teacher.iloc[-1] if len(teacher) else math.nan
    parts = []
    for (slow, fast), paper in zip(zip(list(times)[1:], times, strict=False), (12 / 9, 19 / 12, 259 / 19), strict=True):
        lost = [f"latency of {k}" for k in (fast, slow) if math.isnan(times[k])]
        values = () if lost else (math.log(times[slow] / times[fast]),)
        label, note = f"{slow} / {fast}", f" (the paper's {paper:.2f})"
        parts.append(
            Part(label, "ln ratio of seconds", values, ABOVE, rule="value", missing=", ".join(lost), note=note)
        )
    return parts


def slopes(rows: pd.DataFrame, x: Callable[[pd.Series], pd.Series]) -> pd.Series:
    """Per-seed least-squares slope of ln FID on x (index: seed); seeds with fewer than two points are left out."""
    found = {}
    for seed, group in rows.dropna(subset=["fid"]).groupby("seed"):
        at = x(group).to_numpy(float)
        if len(np.unique(at)) > 1:
            found[int(seed)] = float(np.polyfit(at, np.log(group["fid"].to_numpy(float)), 1)[0])
    return pd.Series(found, dtype=float)


def _without_me(data: Data, system: System) -> pd.DataFrame:
    """4-step rows of a student over k, without multiple estimation."""
    rows = select(final_rows(data), system, steps=4, dataset="unseen")
    return rows[(rows["skip"] <= SOLVER_SKIP) | rows["multiple_estimation"].isin([False])]


def c10(data: Data, variant: str) -> list[Part]:
    """Slope of ln FID on ln k without ME, w = 3, 4 steps: LCM's > 0, SPLAM's > 0, LCM's - SPLAM's > 0."""
    systems = {"LCM": System(LCM, 3), "SPLAM": System("SPLAM", 3, variant=variant)}
    rows = {name: _without_me(data, system) for name, system in systems.items()}
    common = set.intersection(*(set(frame["skip"]) for frame in rows.values()))
    rows = {name: frame[frame["skip"].isin(common)] for name, frame in rows.items()}
    slope = {name: slopes(frame, lambda g: np.log(g["skip"])) for name, frame in rows.items()}
    missing = "" if all(map(len, slope.values())) else f"{systems['SPLAM']} and LCM at several k without ME"
    unit = "slope of ln FID on ln k"
    parts = [Part(f"{name}'s slope", unit, tuple(s), ABOVE, missing=missing) for name, s in slope.items()]
    gap = difference(pair(slope["LCM"], slope["SPLAM"], shared=False))
    return [*parts, Part("LCM's slope - SPLAM's", unit, gap, ABOVE, missing=missing)]


def c11(data: Data, variant: str) -> list[Part]:
    """SPLAM + ME, w = 3, 4 steps: FID(k = 100) / FID(k = 20), TOST inside +-ln 1.10; k = 200 is reported."""
    margin = (-math.log(1.10), math.log(1.10))
    part = compare(data, splam(variant, 3, 100, True), splam(variant, 3, 20), 4, accept=margin, level=0.90)
    far = compare(data, splam(variant, 3, 200, True), splam(variant, 3, 20), 4)
    if far.values and not part.missing:
        note = f"; k = 200 against k = 20: ratio {math.exp(far.estimate):.3f}"
        part = Part(part.label, part.unit, part.values, margin, 0.90, note=note)
    return [part]


def curve(data: Data, system: System) -> pd.DataFrame:
    """FID over training on Fig. 2b's sample: a row for each seed, a column for each iteration."""
    rows = select(data.rows, system, dataset="unseen-curve").dropna(subset=["fid"])
    rows = rows[rows["steps"] == rows["steps"].max()]
    if rows["run"].nunique() > 1:
        raise ValueError(f"{system} has several training curves: {', '.join(sorted(rows['run'].unique()))}; drop one")
    return rows.pivot(index="seed", columns="iteration", values="fid")


def _curve_missing(curves: dict[System, pd.DataFrame]) -> str:
    lost = [f"training curve of {system}" for system, frame in curves.items() if frame.empty]
    return "no " + ", no ".join(lost) if lost else ""


def c12(data: Data, variant: str) -> list[Part]:
    """SPLAM / LCM on the curve, k = 20, w = 3: above 0 at the first evaluation, below 0 at the last."""
    systems = splam(variant, 3, 20), System(LCM, 3, 20)
    ours, lcm = (curve(data, s) for s in systems)
    common = sorted(set(ours.columns) & set(lcm.columns))
    missing = _curve_missing(dict(zip(systems, (ours, lcm), strict=True)))
    if not missing and len(common) < 2:
        missing = "two iterations at which both were evaluated"
    parts = []
    for name, at, accept in (("first", 0, ABOVE), ("last", -1, BELOW)):
        values = () if missing else ln_ratio(pair(ours[common[at]].dropna(), lcm[common[at]].dropna(), shared=False))
        label = f"SPLAM / LCM at the {name} evaluation" + ("" if missing else f" ({common[at]:g} iterations)")
        parts.append(Part(label, "ln ratio of FID", values, accept, missing=missing))
    return parts


def reach(fid: pd.Series, threshold: float) -> tuple[float, bool]:
    """First iteration whose FID is at most threshold, and False; or the last iteration, and True for censored."""
    fid = fid.dropna()
    below = fid.index[fid <= threshold]
    return (float(below[0]), False) if len(below) else (float(fid.index[-1]), True)


def c13(data: Data, variant: str) -> list[Part]:
    """Iterations to 1.05 x LCM's best, w = 3: SPLAM k = 100 + ME / SPLAM k = 20 and / LCM k = 20, both below 0.

    A run that never gets there counts with its last iteration (censored).
    """
    fast, others = (splam(variant, 3, 100, True), (splam(variant, 3, 20), System(LCM, 3, 20)))
    curves = {system: curve(data, system) for system in (fast, *others)}
    missing = _curve_missing(curves)
    seeds = [] if missing else sorted(set.intersection(*(set(c.index) for c in curves.values())))
    goal = {seed: 1.05 * curves[others[1]].loc[seed].min() for seed in seeds}
    reached = {s: [reach(c.loc[seed], goal[seed]) for seed in seeds] for s, c in curves.items()}
    parts = []
    for other in others:
        pairs = [(a[0], b[0]) for a, b in zip(reached[fast], reached[other], strict=True)]
        censored = sum(a[1] for a in reached[fast]), sum(b[1] for b in reached[other])
        note = f" ({censored[0]} and {censored[1]} censored)" if any(censored) else ""
        label = f"SPLAM k = 100 + ME / {_short(other)}"
        parts.append(Part(label, "ln ratio of iterations", ln_ratio(pairs), BELOW, missing=missing, note=note))
    return parts


def _delta_series(data: Data, method: str, variant: str, guidance_scale: float) -> pd.DataFrame:
    """delta rows of one student trained at k = 20 (where its evaluation says so) from t = 119 on."""
    rows = data.delta[(data.delta["method"] == method) & (data.delta["guidance_scale"] == guidance_scale)]
    skips = data.rows.dropna(subset=["skip"]).drop_duplicates("run").set_index("run")["skip"]
    rows = rows[rows["run"].map(skips).fillna(20) == 20]
    return rows[(rows["t"] >= 119) & ((rows["variant"] == variant) if variant else True)]


def c14(data: Data, variant: str) -> list[Part]:
    """delta(t, 20) (RMS) of SPLAM / LCM at the same w: below 0 summed over t >= 119, and at t = 799."""
    scales = sorted(set(data.delta.loc[data.delta["method"] == LCM, "guidance_scale"])) or [3]
    found = [(_delta_series(data, "SPLAM", variant, w), _delta_series(data, LCM, "", w)) for w in scales]
    ours, lcm = next((f for f in found if len(f[0])), found[0])
    parts = []
    for name, keep in (("summed over t", lambda f: f), ("at t = 799", lambda f: f[f["t"] == 799])):
        sums = [keep(f).groupby("seed")[["delta_rms", "x0_error_rms"]].sum() for f in (ours, lcm)]
        pairs = pair(sums[0]["delta_rms"], sums[1]["delta_rms"], shared=False)
        missing = "" if pairs else f"delta(t, 20) of {_named(variant)} and LCM, k = 20, same w and seed"
        errors = ln_ratio(pair(sums[0]["x0_error_rms"], sums[1]["x0_error_rms"], shared=False))
        note = f" (x0 error ratio {math.exp(np.mean(errors)):.3f}; the paper: about 0.9 at t = 800)" if pairs else ""
        parts.append(Part(f"delta {name}", "ln ratio of delta", ln_ratio(pairs), BELOW, missing=missing, note=note))
    return parts


def guidance_rows(data: Data, variant: str) -> pd.DataFrame:
    """4-step SPLAM rows of Fig. 3: the k at which the variant was trained for the most w; the paper names none."""
    rows = final_rows(data)
    rows = rows[(rows["method"] == "SPLAM") & (rows["variant"] == variant) & (rows["steps"] == 4)]
    rows = rows[
        (rows["dataset"] == "unseen") & ((rows["skip"] <= SOLVER_SKIP) | (rows["multiple_estimation"].isin([True])))
    ]
    if rows.empty:
        return rows
    return rows[rows["skip"] == rows.groupby("skip")["guidance_scale"].nunique().idxmax()]


def c15(data: Data, variant: str) -> list[Part]:
    """Spearman's rho of w with CLIP score and with FID, SPLAM in 4 steps, w from 3 to 12: > 0 for both, every seed."""
    rows = guidance_rows(data, variant)
    parts = []
    for name, column in (("CLIP score", "clip_score"), ("FID", "fid")):
        rho = []
        for _, group in rows.dropna(subset=[column]).groupby("seed"):
            scales = set(group["guidance_scale"])
            if {3, 12} <= scales and len(scales) > 2:
                rho.append(float(stats.spearmanr(group["guidance_scale"], group[column]).statistic))
        missing = "" if rho else f"{name} of {_named(variant)}, 4 steps, at three w from 3 to 12"
        part = Part(f"rho of w and {name}", "Spearman's rho", tuple(rho), ABOVE, rule="range", missing=missing)
        parts.append(part)
    return parts


def c16(data: Data, variant: str) -> list[Part]:
    """SPLAM k = 100, w = 3, 4 steps: with ME / without, below 0."""
    return [compare(data, splam(variant, 3, 100, True), splam(variant, 3, 100, False), 4)]


def c17(data: Data, variant: str) -> list[Part]:
    """4-step SPLAM (k = 100, ME) / 4-step DPM-Solver++, UniPC and LCM-LoRA: below 0, at w = 3 and w = 8."""
    others = ("DPM-Solver++", "UniPC", "LCM-LoRA")
    return [compare(data, splam(variant, w, 100, True), System(name, w), 4) for w in (3, 8) for name in others]


def c18(data: Data, variant: str) -> list[Part]:
    """Slope of ln FID over the last third of training, k = 20, w = 3: LCM's above 0, SPLAM's below 0."""
    parts = []
    for name, system, accept in (("LCM", System(LCM, 3, 20), ABOVE), ("SPLAM", splam(variant, 3, 20), BELOW)):
        frame = curve(data, system).melt(ignore_index=False, value_name="fid").reset_index()
        late = frame[frame["iteration"] >= frame["iteration"].max() * 2 / 3] if len(frame) else frame
        slope = slopes(late, lambda g: g["iteration"].astype(float) / 1000)
        missing = "" if len(slope) else f"two evaluations of {system} in the last third"
        unit = "slope of ln FID per 1,000 iterations"
        parts.append(Part(f"{name}'s slope in the last third", unit, tuple(slope), accept, missing=missing))
    return parts


@dataclass(frozen=True)
class Claim:
    """What the paper says, where, and the function that tests it."""

    id: str
    text: str
    where: str
    test: Callable[[Data, str], list[Part]]
    about_splam: bool = True

    @property
    def by_fid(self) -> bool:
        """Whether it is about FIDs alone, so that it can be asked of the FID to the teacher's images too."""
        return self.id in BY_FID


CLAIMS = (
    Claim("C1", "SPLAM's FID is below LCM's (fix w) on the held-out set at 1, 2 and 4 steps (w = 8)", "Table 1", c1),
    Claim("C2", "In distribution, SPLAM and LCM (fix w) are close in FID", "Table 1", c2),
    Claim("C3", "The CLIP scores of SPLAM and LCM (fix w) are alike", "Table 1", c3),
    Claim("C4", "LCM (fix w) beats LCM* at each step count", "Table 1", c4, about_splam=False),
    Claim("C5", "Each distilled student beats DDIM, DPM-Solver and DPM-Solver++ at 1, 2, 4 steps", "Table 1", c5),
    Claim("C6", "w = 3: SPLAM (k = 100, ME) beats LCM at 2 and 4 steps", "Tables 2a, 2b", c6),
    Claim("C7", "w = 8: SPLAM beats LCM at 2 and 4 steps, and in 2 steps is no worse than LCM in 4", "Table 2c", c7),
    Claim("C8", "4-step SPLAM is near its teacher", "Tables 2a, 2c", c8),
    Claim("C9", "Latency grows as 0.09 : 0.12 : 0.19 for 1, 2, 4 steps, teacher 2.59", "Table 2", c9, False),
    Claim("C10", "Without ME, FID worsens as k grows, LCM's more than SPLAM's", "Fig. 2a", c10),
    Claim("C11", "With ME, SPLAM keeps its FID at k = 100", "Fig. 2a", c11),
    Claim("C12", "At k = 20, SPLAM is behind LCM at the first evaluation and ahead at the last", "Fig. 2b", c12),
    Claim("C13", "SPLAM with k = 100 + ME converges fastest", "Fig. 2b", c13),
    Claim("C14", "SPLAM's delta(t, 20) is below LCM's, by about 10 % at t = 800", "Fig. 2c", c14),
    Claim("C15", "Raising w from 3 to 12 raises both CLIP score and FID", "Fig. 3", c15),
    Claim("C16", "At k = 100, ME beats no ME", "Fig. 2a", c16),
    Claim("C17", "4-step SPLAM beats 4-step DPM-Solver++, UniPC and LCM-LoRA", "Tables 2a, 2c", c17),
    Claim("C18", "LCM's FID worsens late in training, SPLAM's does not", "Fig. 2b", c18),
)


# Not C2, whose test set the teacher's images are not of, nor C8, in which the teacher is one side.
BY_FID = frozenset(("C1", "C4", "C5", "C6", "C7", "C10", "C11", "C12", "C13", "C16", "C17", "C18"))


def splam_variants(rows: pd.DataFrame) -> list[str]:
    """SPLAM's variants in rows, the paper's raw input first, then the scaled one; [""] if there is none."""
    present = set(rows.loc[rows["method"] == "SPLAM", "variant"].dropna()) - {""}
    first = [v for v in ("raw input", "scaled input") if v in present]
    return first + sorted(present - set(first)) or [""]


def _tests(data: Data) -> list[tuple[Claim, str, list[Part]]]:
    """Every claim with each variant it is tested for, and its parts."""
    variants = splam_variants(data.rows)
    return [(c, v, c.test(data, v)) for c in CLAIMS for v in (variants if c.about_splam else [""])]


def combine(parts: list[Part]) -> str:
    """A claim of several parts needs each: one that does not hold settles it, then what is missing or untested."""
    found = {part.verdict for part in parts}
    return next(v for v in (FAILS, MISSING, ONE_SEED, NOISE, HOLDS) if v in found)


def describe(parts: list[Part], most: int = 8) -> str:
    """What was measured, in one line; a claim of many parts is counted and its worst part shown."""
    missing = list(dict.fromkeys(p.lacks for p in parts if p.verdict == MISSING))
    known = [p for p in parts if p.verdict != MISSING]
    if len(known) <= most:
        texts = [str(p) for p in known]
    else:
        inside = sum(p.excess < 0 for p in known)
        texts = [f"{inside} of {len(known)} comparisons on the claimed side; furthest off: {_decisive(known)}"]
    if missing:
        more = f" and {len(missing) - 2} more" if len(missing) > 2 else ""
        texts.append(f"{MISSING}: {'; '.join(missing[:2])}{more}")
    return "; ".join(texts)


def _decisive(parts: list[Part]) -> Part:
    """The part that settles the verdict: of those that share it, the one furthest from the claimed region."""
    settled = [p for p in parts if p.verdict == combine(parts)]
    return max(settled, key=lambda p: -math.inf if math.isnan(p.excess) else p.excess)


def _part_record(part: Part) -> dict[str, object]:
    return {
        "part": part.label,
        "unit": part.unit,
        "estimate": part.estimate,
        "low": part.bounds[0],
        "high": part.bounds[1],
        "accept_low": part.accept[0],
        "accept_high": part.accept[1],
        "values": " ".join(f"{v:.6g}" for v in part.values),
    }


def _prepare(rows: pd.DataFrame, delta: pd.DataFrame, latency: pd.DataFrame, floors: pd.DataFrame) -> Data:
    """The frames with every column the tests read, whatever was measured."""
    return Data(
        rows.reindex(columns=list(ROW_COLUMNS)),
        delta.reindex(columns=list(DELTA_COLUMNS)),
        latency.reindex(columns=list(LATENCY_COLUMNS)),
        floors.reindex(columns=list(ROW_COLUMNS)),
    )


def claim_parts(rows: pd.DataFrame, delta: pd.DataFrame, latency: pd.DataFrame, floors: pd.DataFrame) -> pd.DataFrame:
    """Every comparison behind every claim, one a row: id, variant, part, unit, estimate, low, high, ..., verdict.

    fid_of: REAL, or for the claims that are about FIDs alone TEACHER too: the images that FIDs are measured against.
    """
    records, data = [], _prepare(rows, delta, latency, floors)
    nearer = _to_teacher(data)
    for claim, variant, parts in _tests(data):
        asked = [(REAL, part) for part in parts]
        asked += [(TEACHER, part) for part in (claim.test(nearer, variant) if claim.by_fid else [])]
        for fid_of, part in asked:
            seeds = len(part.values) if part.rule != "value" else None
            record = {"id": claim.id, "variant": variant, "fid_of": fid_of, **_part_record(part), "seeds": seeds}
            records.append({**record, "verdict": part.verdict})
    return pd.DataFrame(records).astype({"seeds": "Int64"})


def _to_teacher(data: Data) -> Data:
    """The same with the FID to the teacher's images as FID, of the systems that were compared with it."""
    rows = data.rows.assign(fid=data.rows["fid_teacher"].astype(float)).dropna(subset=["fid"])
    return dataclasses.replace(data, rows=rows)


def evaluate_claims(
    rows: pd.DataFrame, delta: pd.DataFrame, latency: pd.DataFrame, floors: pd.DataFrame
) -> pd.DataFrame:
    """The verdict on C1-C18, one row for each claim and SPLAM variant.

    rows, floors: evaluations (ROW_COLUMNS); delta: DELTA_COLUMNS; latency: LATENCY_COLUMNS; any may be empty.
    Columns: id, variant, claim, where, measured, estimate, low, high (of the part that settles the verdict, in
    `unit`), seeds (the fewest of any measured part; none for latencies), verdict, and that part's description;
    to_teacher_verdict and to_teacher_measured: the same rule with the FID to the teacher's images in place of the FID,
    for claims that are about FIDs alone.
    """
    records, data = [], _prepare(rows, delta, latency, floors)
    nearer = _to_teacher(data)
    for claim, variant, parts in _tests(data):
        part = _decisive(parts)
        again = claim.test(nearer, variant) if claim.by_fid else []
        seeds = [len(p.values) for p in parts if p.values and p.rule != "value"]
        records.append(
            {
                "id": claim.id,
                "variant": variant,
                "claim": claim.text,
                "where": claim.where,
                "measured": describe(parts),
                **{k: _part_record(part)[k] for k in ("estimate", "low", "high")},
                "seeds": min(seeds, default=None),
                "verdict": combine(parts),
                **{k: _part_record(part)[k] for k in ("part", "unit", "accept_low", "accept_high")},
                "to_teacher_verdict": combine(again) if again else "",
                "to_teacher_measured": describe(again) if again else "",
            }
        )
    return pd.DataFrame(records).astype({"seeds": "Int64"})
