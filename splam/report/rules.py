"""How a claim is judged: a number for each seed, its interval, and the region that the claim says it lies in.

A part holds if its interval over seeds lies inside the region, does not hold if it lies wholly outside, and is within
noise otherwise. What was never distilled is put to the same test (CONTROLS): a part that such a control passes cannot
tell. A claim needs each of the parts that can, and at least one.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from scipy import stats

from splam.report.metrics import CONTROLS, Metrics, by_seed, steps_text, where

HOLDS, FAILS, NOISE = "holds", "does not hold", "within noise"
FEW_SEEDS, MISSING = "fewer than three seeds, not tested", "not measured"
CANNOT_TELL, REPORTED = "cannot tell", "reported, not judged"
CONTENT = yaml.safe_load((Path(__file__).parent / "claims.yaml").read_text())
SD_CLIP_MARGIN = 0.2
SD_CLIP_RANGE = 25.0  # assumed range of Stable Diffusion's CLIP score: Table 1's best, 31.5, less its noise, about 6
BELOW, ABOVE = (-math.inf, 0.0), (0.0, math.inf)
FID_UNIT = "ln ratio of FID"
NAMES = {"fid": ("FID", FID_UNIT, " / "), "clip_score": ("CLIP score", "CLIP score difference", " - ")}
REAL, TEACHER = "real images", "the teacher's images"  # what an FID is measured against


def number(unit: str, estimate: float, low: float = math.nan, high: float = math.nan) -> str:
    """'0.934 [0.901, 0.968]': a ratio rather than its logarithm, with its interval if there is one."""
    ratio, values = unit.startswith("ln ratio"), (estimate, low, high)
    shown = [f"{math.exp(value):.3f}" if ratio else f"{value:+.3g}" for value in values]
    return shown[0] if math.isnan(low) else "{} [{}, {}]".format(*shown)


def ln_ratio(a: pd.Series, b: pd.Series) -> tuple[float, ...]:
    """ln(a / b) for each seed that both have (index: seed)."""
    return tuple(np.log(a / b).dropna())


@dataclass(frozen=True)
class Part:
    """One comparison of a claim: a number for each seed, and the open region `accept` that they should lie in.

    level: of the t interval over seeds; None takes the one number as it is. p: where it decides in place of the
    interval, of the claimed side and of the other. controls: those that pass the same test; judged: whether the claim
    needs this part.
    """

    label: str
    unit: str
    values: tuple[float, ...]
    accept: tuple[float, float]
    level: float | None = 0.95
    p: tuple[float, float] | None = None
    controls: tuple[str, ...] = ()
    judged: bool = True
    missing: str = ""
    note: str = ""

    @property
    def estimate(self) -> float:
        """The mean over seeds."""
        return float(np.mean(self.values)) if self.values else math.nan

    @cached_property
    def bounds(self) -> tuple[float, float]:
        """What is compared with `accept`: Student's t interval for the mean; (nan, nan) for fewer than two values."""
        if self.level is None and self.values:
            return self.values[0], self.values[0]
        if len(self.values) < 2:
            return math.nan, math.nan
        if self.p is not None:
            return min(self.values), max(self.values)
        half = float(stats.t.ppf((1 + self.level) / 2, len(self.values) - 1) * stats.sem(self.values))
        return self.estimate - half, self.estimate + half

    @property
    def verdict(self) -> str:
        """HOLDS, FAILS, NOISE, CANNOT_TELL, FEW_SEEDS, MISSING or REPORTED."""
        if self.missing or not self.values:
            return MISSING
        if not self.judged:
            return REPORTED
        if self.level and len(self.values) < 3:
            return FEW_SEEDS
        if self.controls:
            return CANNOT_TELL
        low, high = self.bounds
        if self.p is not None:
            return HOLDS if self.p[0] < 0.05 else FAILS if self.p[1] < 0.05 else NOISE
        if self.accept[0] < low and high < self.accept[1]:
            return HOLDS
        return FAILS if low > self.accept[1] or high < self.accept[0] else NOISE

    @property
    def excess(self) -> float:
        """How far the estimate lies outside the claimed region; negative inside."""
        return max(self.accept[0] - self.estimate, self.estimate - self.accept[1])

    def __str__(self) -> str:
        direction = (" (as claimed)" if self.excess < 0 else " (not as claimed)") * math.isnan(self.bounds[0])
        said = number(self.unit, self.estimate, *(self.bounds if self.level else ()))
        note = f" ({self.note})" * bool(self.note)
        return f"{self.label}: {self.unit.removeprefix('ln ')} {said}{direction}{note}"

    def record(self) -> dict[str, object]:
        """The part as a row of claims_parts.csv and of the page; alone: its verdict if there were no controls."""
        numbers = {"estimate": self.estimate, "low": self.bounds[0], "high": self.bounds[1]}
        region = {"accept_low": self.accept[0], "accept_high": self.accept[1], "excess": self.excess}
        seeds = {"values": " ".join(f"{value:.4g}" for value in self.values)}
        seeds["seeds"] = len(self.values) if self.level else None
        facts = {"verdict": self.verdict, "alone": replace(self, controls=()).verdict}
        facts |= {"controls": "; ".join(self.controls), "note": self.note}
        return {"part": self.label, "unit": self.unit, **numbers, **region, **seeds, **facts}

    def told(self, **controls: Sequence[float]) -> "Part":
        """The part with the names of those controls whose values, one for each seed, pass its test."""
        passed = [name for name, values in controls.items() if replace(self, values=tuple(values)).verdict == HOLDS]
        return replace(self, controls=tuple(passed))


def decisive(parts: Sequence[Part]) -> Part:
    """The part whose verdict is the claim's: of those that share it, the one furthest from the claimed region.

    A claim needs each part that can tell: one that does not hold settles it, then what is missing or untested.
    """
    order = (FAILS, MISSING, FEW_SEEDS, NOISE, HOLDS, CANNOT_TELL, REPORTED)
    return min(parts, key=lambda part: (order.index(part.verdict), -np.nan_to_num(part.excess, nan=-math.inf)))


def describe(parts: Sequence[Part]) -> str:
    """What was measured, in one line; of more than eight parts, how many agree and which is furthest off."""
    known = [part for part in parts if part.verdict != MISSING]
    lost = [part.missing or f"a shared seed of '{part.label}'" for part in parts if part.verdict == MISSING]
    texts, lost = [str(part) for part in known], list(dict.fromkeys(lost))
    if len(known) > 8:
        agree = sum(part.excess < 0 for part in known)
        texts = [f"{agree} of {len(known)} comparisons on the claimed side; furthest off: {decisive(known)}"]
    more = [f"and {len(lost) - 2} more"] if len(lost) > 2 else []
    return "; ".join(texts + [f"{MISSING}: {'; '.join([*lost[:2], *more])}"] * bool(lost))


def system(name: str, variant: str) -> dict[str, Any]:
    """The columns that pick the rows of a system of claims.yaml, SPLAM in one of its variants."""
    found = CONTENT["systems"][name]
    return found | {"variant": variant} if found["method"] == "SPLAM" and variant else found


def short(system: dict[str, Any]) -> str:
    """'SPLAM k = 100 + ME'."""
    path = f" k = {system['skip']}" if "skip" in system else ""
    return system["method"] + path + " + ME" * system.get("multiple_estimation", False)


def region(metrics: Metrics, entry: dict[str, Any]) -> tuple[float, float]:
    """Where an entry of claims.yaml says that its numbers lie.

    The margin of CLIP scores is 0.2 for Stable Diffusion's, elsewhere that share of real - shuffled captions.
    """
    if entry.get("within") != "clip margin":
        margin = math.log(entry.get("within", entry.get("below", 1.0)))
        return (-margin if "within" in entry else -math.inf, margin) if entry["metric"] == "fid" else ABOVE
    scores = where(metrics.floors, dataset=entry["dataset"]).groupby("method")["clip_score"].mean()
    real, shuffled = (scores.get(name, math.nan) for name in ("Real images", "Shuffled captions"))
    share = 1.0 if "ViT-g-14" in metrics.fact("clip_name") else float(real - shuffled) / SD_CLIP_RANGE
    return -SD_CLIP_MARGIN * share, SD_CLIP_MARGIN * share


def label(entry: dict[str, Any], systems: list[dict[str, Any]], steps: list[int]) -> str:
    """'SPLAM / LCM (fix w), 2 steps, w = 8, unseen', with k where one method is compared with itself."""
    same = systems[0]["method"] == systems[1]["method"]
    names = NAMES[entry["metric"]][2].join(short(side) if same else side["method"] for side in systems)
    counts = steps_text(steps[1]) if steps[0] == steps[1] else f"{steps[0]} / {steps_text(steps[1])}"
    return f"{names}, {counts}, w = {systems[0]['guidance_scale']:g}, {entry['dataset']}"


def compare(metrics: Metrics, entry: dict[str, Any], variant: str) -> Iterator[Part]:
    """The part that an entry of claims.yaml stands for, for one variant of SPLAM; none where it is not asked for."""
    entry = {"dataset": "unseen", "metric": "fid", **entry}
    systems = [system(entry[side], variant) for side in ("a", "b")]
    steps = entry["steps"] if isinstance(entry["steps"], list) else [entry["steps"]] * 2
    drawn = where(metrics.rows, final=True, dataset=entry["dataset"])
    rows = [where(drawn, **side) for side in systems]
    if "where_measured" in entry and any(found.empty for found in rows):
        return
    rows = [where(found, steps=n) for n, found in zip(steps, rows, strict=True)]
    a, b = (by_seed(found, entry["metric"]) for found in rows)
    name, unit, _ = NAMES[entry["metric"]]
    accept, level = region(metrics, entry), 0.90 if "within" in entry else 0.95
    lost = []
    for side, count, found in zip(systems, steps, (a, b), strict=True):
        text = f"w = {side['guidance_scale']:g}, {steps_text(count)}, {entry['dataset']}"
        lost += [f"no {name} of {short(side)}, {text}"] if found.empty else []
    lost += [f"CLIP score floors of {entry['dataset']}"] if math.isnan(accept[0]) else []

    b = b[b.index.isin(a.index)]  # a control is judged by the seeds of the part

    def paired(side: pd.Series) -> tuple[float, ...]:
        return ln_ratio(side, b) if entry["metric"] == "fid" else tuple((side - b).dropna())

    trained = [found["iteration"].max() for found in rows]
    facts = {"missing": "".join(lost[:1]), "judged": entry.get("judged", True)}
    if np.min(trained) > 0 and trained[0] != trained[1]:  # nan of a solver
        facts["note"] = "after {:g} and {:g} iterations".format(*trained)
    part = Part(label(entry, systems, steps), unit, paired(a), accept, level, **facts)
    beside = where(drawn, guidance_scale=systems[0]["guidance_scale"], steps=steps[0])
    yield part.told(**{name: paired(by_seed(where(beside, method=name), entry["metric"])) for name in CONTROLS})
