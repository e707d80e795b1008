"""Claims and comparisons as the page draws them: a mark for each verdict, a place on a scale for each number."""

import math
from typing import Any

import numpy as np
import pandas as pd

from splam.report.metrics import where
from splam.report.rules import FAILS, HOLDS, MISSING, NOISE, ONE_SEED, REAL

ALL, SOME, NONE = "as claimed", "partly as claimed", "not as claimed"  # directions of a single seed
GLYPHS = {HOLDS: "✓", FAILS: "✕", NOISE: "≈", ALL: "✓", SOME: "◐", NONE: "✕", MISSING: "–"}
SHARE = {"better": HOLDS, "worse": FAILS}  # what ablations call their verdicts


def marks(verdicts: pd.DataFrame, parts: pd.DataFrame) -> list[dict[str, Any]]:
    """Verdicts with their `state`, a key of GLYPHS: of one seed, how many of its comparisons go the claimed way."""
    found = []
    for row in verdicts.to_dict("records"):
        own = where(parts, id=row["id"], variant=row["variant"], fid_of=REAL).dropna(subset=["estimate"])
        agree = (own["excess"] < 0).mean()
        direction = ALL if agree == 1 else NONE if agree == 0 else SOME
        found.append({**row, "state": direction if row["verdict"] == ONE_SEED else row["verdict"]})
    return found


def places(parts: pd.DataFrame) -> list[dict[str, Any]]:
    """Measured parts with their text, their state, and where on a scale from 0 to 100 their numbers and 0 lie.

    Parts of one unit share a scale. `at`: of estimate, low, high, accept_low, accept_high and zero.
    """
    columns, found = ["estimate", "low", "high", "accept_low", "accept_high"], []
    for unit, rows in parts[parts["estimate"].notna()].groupby("unit", sort=False):
        numbers = rows[columns].astype(float).assign(zero=0.0)
        known = numbers.to_numpy()[np.isfinite(numbers.to_numpy())]
        start, width = known.min() - 0.1 * (np.ptp(known) or 1.0), 1.2 * (np.ptp(known) or 1.0)
        at = ((numbers - start) / width * 100).clip(0, 100).round(1)
        at = at.fillna({"low": at["estimate"], "high": at["estimate"]})
        for row, where_drawn in zip(rows.to_dict("records"), at.to_dict("records"), strict=True):
            agrees = ALL if row["excess"] < 0 else NONE
            state = agrees if row["verdict"] == ONE_SEED else SHARE.get(row["verdict"], row["verdict"])
            found.append({**row, "at": where_drawn, "state": state, "text": number(row, unit)})
    return found


def number(row: dict[str, Any], unit: str) -> str:
    """'0.934 [0.901, 0.968]': a ratio rather than its logarithm, with its interval if there is one."""
    ratio = unit.startswith("ln ratio")
    estimate, low, high = (
        f"{math.exp(row[k]):.3f}" if ratio else f"{row[k]:+.3g}" for k in ("estimate", "low", "high")
    )
    return estimate if low == "nan" or low == high else f"{estimate} [{low}, {high}]"
