"""What the metrics can be trusted with: FID against the number of images, and every metric under known damage.

Both studies need no model but those of the metrics: they measure real images against other real images. Damage is a
function of uint8 images (n, h, w, 3) to as many images, a strength of 0 leaves them as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr

from splam.evaluate import Measure
from splam.metrics import FeatureStatistics, fid, kid

Damage = Callable[[float], np.ndarray]
"""Of a strength to the damaged images, uint8 (n, h, w, 3)."""

METRICS = ("fid", "kid", "precision", "recall", "clip_score", "paired_distance")
STRENGTHS = {
    "blur": (0.0, 0.5, 0.75, 1.0, 2.0),
    "noise": (0.0, 8.0, 16.0, 32.0, 64.0),
    "swapped captions": (0.0, 0.25, 0.5, 0.75, 1.0),
    "dropped modes": (0.0, 0.2, 0.4, 0.6, 0.7),
}
UNITS = {
    "blur": "deviation of the kernel, pixels",
    "noise": "deviation, of 255",
    "swapped captions": "share of the images",
    "dropped modes": "share of the modes",
}
# +1: must rise with the damage, -1: must fall, 0: must stay; what is not listed may do either.
EXPECTED = {
    "blur": {"fid": 1, "kid": 1, "precision": -1, "clip_score": -1, "paired_distance": 1},
    "noise": {"fid": 1, "kid": 1, "precision": -1, "clip_score": -1, "paired_distance": 1},
    "swapped captions": {"fid": 0, "kid": 0, "precision": 0, "recall": 0, "clip_score": -1, "paired_distance": 1},
    "dropped modes": {"fid": 1, "kid": 1, "recall": -1, "clip_score": -1, "paired_distance": 1},
}
SAME = 1e-3  # relative change that is none: a feature depends on its batch by rounding


# Known damage


def blur(images: np.ndarray, deviation: float) -> np.ndarray:
    """Images under a Gaussian kernel of a deviation in pixels; the border is continued by its last pixel."""
    smooth = gaussian_filter(images.astype(np.float32), (0, deviation, deviation, 0), mode="nearest")
    return np.rint(smooth).astype(np.uint8)


def add_noise(images: np.ndarray, deviation: float, seed: int = 0) -> np.ndarray:
    """Images with the same normal noise at every strength, of a deviation on the scale of 0 to 255, clipped."""
    noise = np.random.default_rng(seed).standard_normal(images.shape, np.float32)
    return np.rint(images + deviation * noise).clip(0, 255).astype(np.uint8)


def swap(images: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """The same images, a share of them moved to other rows, so that they no longer show their captions."""
    moved = np.random.default_rng(seed).permutation(len(images))[: round(share * len(images))]
    swapped = images.copy()
    swapped[moved] = images[np.roll(moved, 1)]
    return swapped


def drop_modes(
    images: np.ndarray, modes: np.ndarray, spare: np.ndarray, spare_modes: np.ndarray, share: float
) -> np.ndarray:
    """Images without the first `share` of their modes: other images of the modes that are left take the places.

    modes (n,), spare_modes (m,): what kind each image is, integers; spare (m, h, w, 3): further images to fill in from.
    Raises ValueError where the spare ones are too few.
    """
    kinds = np.unique(modes)
    gone = kinds[: round(share * len(kinds))]
    lost, left = np.isin(modes, gone), np.flatnonzero(~np.isin(spare_modes, gone))
    if lost.sum() > len(left):
        raise ValueError(f"{lost.sum()} images are dropped, {len(left)} spare ones are of the modes that are left")
    kept = images.copy()
    kept[lost] = spare[left[: lost.sum()]]
    return kept


def known_damage(
    images: np.ndarray, modes: np.ndarray, spare: np.ndarray, spare_modes: np.ndarray
) -> dict[str, Damage]:
    """The four kinds of damage of STRENGTHS to one set of images (see drop_modes)."""
    return {
        "blur": partial(blur, images),
        "noise": partial(add_noise, images),
        "swapped captions": partial(swap, images),
        "dropped modes": partial(drop_modes, images, modes, spare, spare_modes),
    }


# Studies


def damage_study(
    measure: Measure,
    images: np.ndarray,
    damage: dict[str, Damage],
    strengths: dict[str, Sequence[float]] = STRENGTHS,
) -> pd.DataFrame:
    """Every metric of the damaged images: columns damage, strength, images and METRICS.

    measure: its references are other real images; the undamaged images stand for the teacher's of the same noise.
    """
    rows, whole = [], measure.pair(images)
    for name, damaged in damage.items():
        for strength in strengths[name]:
            row = measure(damaged(strength), whole)(len(images))
            rows.append({"damage": name, "strength": strength, "images": row["images"], **{m: row[m] for m in METRICS}})
    return pd.DataFrame(rows)


def directions(rows: pd.DataFrame) -> pd.DataFrame:
    """Which way each metric went under each damage: expected and moved (rises, falls, stays, turns), and as_expected.

    rows: of damage_study. "turns" is neither rising nor falling with every strength; rho is Spearman's, of metric and
    strength. as_expected is None where EXPECTED leaves the direction open.
    """
    words = {1: "rises", -1: "falls", 0: "stays"}
    found = []
    for damage, group in rows.groupby("damage", sort=False):
        for metric in METRICS:
            moved = movement(group[metric].to_numpy(float))
            expected = words.get(EXPECTED[damage].get(metric))
            rho = 0.0 if moved == "stays" else float(spearmanr(group["strength"], group[metric]).statistic)
            facts = {"damage": damage, "metric": metric, "expected": expected or "open", "moved": moved, "rho": rho}
            found.append(facts | {"as_expected": moved == expected if expected else None})
    return pd.DataFrame(found)


def movement(values: np.ndarray) -> str:
    """How values (n,) go: "rises" or "falls" at every step, "stays" up to rounding, else "turns"."""
    steps = np.diff(values)
    if (np.abs(steps) <= SAME * np.abs(values).max()).all():
        return "stays"
    return "rises" if (steps > 0).all() else "falls" if (steps < 0).all() else "turns"


def count_study(
    reference: np.ndarray, features: np.ndarray, counts: Iterable[int], draws: int, seed: int = 0
) -> pd.DataFrame:
    """FID and KID of disjoint draws of features (m, d) against the reference's (n, d): a row for each count and draw.

    counts: images of a draw; draws: at most so many draws of a count, fewer where the images do not suffice.
    Raises ValueError where they do not suffice for two.
    """
    statistics, rows = FeatureStatistics.of(reference), []
    for count in counts:
        possible = min(draws, len(features) // count)
        if possible < 2:
            raise ValueError(f"{len(features)} images are too few for two disjoint draws of {count}")
        for draw in range(possible):
            part = features[draw * count : (draw + 1) * count]
            scores = {"fid": fid(statistics, FeatureStatistics.of(part)), "kid": kid(reference, part, seed)}
            rows.append({"images": count, "draw": draw, **scores})
    return pd.DataFrame(rows)


def spread(rows: pd.DataFrame, keys: Sequence[str] = ("set", "images")) -> pd.DataFrame:
    """Means and standard deviations over the disjoint draws of count_study: keys, draws, fid, fid_sd, kid, kid_sd."""
    groups = rows.groupby(list(keys), sort=False)
    columns = {"draws": groups.size()}
    for metric in ("fid", "kid"):
        columns |= {metric: groups[metric].mean(), f"{metric}_sd": groups[metric].std()}
    return pd.DataFrame(columns).reset_index()


def differences(rows: pd.DataFrame) -> pd.DataFrame:
    """FID of the second set of count_study less the first's, of the same draws: images, draws, fid, fid_sd.

    What the number of images adds to both is not in it: whether two FIDs of equally many images may be compared.
    """
    first, second = (group.set_index(["images", "draw"])["fid"] for _, group in rows.groupby("set", sort=False))
    groups = (second - first).groupby("images")
    return pd.DataFrame({"draws": groups.size(), "fid": groups.mean(), "fid_sd": groups.std()}).reset_index()


def summary(counts: pd.DataFrame, moves: pd.DataFrame, reference_images: int, metric: str) -> str:
    """Both studies in Markdown: FID and KID by the number of images, of two sets, and every metric's direction.

    counts: of count_study for two sets, named in a column `set`; moves: of directions; metric: FID's name.
    """
    first, second = counts["set"].unique()
    signs = moves.assign(shown=[_direction(*v) for v in zip(moves["moved"], moves["expected"], strict=True)])
    grid = signs.pivot(index="damage", columns="metric", values="shown")
    grid = grid.loc[list(EXPECTED), list(METRICS)].reset_index()
    wrong = moves[moves["as_expected"].isin([False])]
    asked = moves["as_expected"].notna().sum()
    return "\n\n".join(
        [
            f"**{metric} and KID of real images against {reference_images:,} other real ones**, means and standard "
            "deviations (sd) over disjoint draws",
            spread(counts).to_markdown(index=False, floatfmt=".4g"),
            f"**FID of {second} less that of {first}**, of the same draws",
            differences(counts).to_markdown(index=False, floatfmt=".4g"),
            "**Which way each metric goes under known damage**, its strength growing from none (in brackets: what was "
            "expected, where it is something else)",
            grid.to_markdown(index=False),
            f"{asked - len(wrong)} of {asked} directions are as expected.\n",
        ]
    )


def _direction(moved: str, expected: str) -> str:
    return moved if expected in (moved, "open") else f"{moved} ({expected})"
