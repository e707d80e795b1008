"""The gate: before a student's number is believed, its teacher must give the number that is known of it.

A pipeline of evaluation that is off by anything (the captions, the crop, the resizing, the features) is off for the
teacher too. Stable Diffusion 1.5 at 50 steps has an Inception FID of about 8.0 on coco30k at w = 3 (paper, Table 2a).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from splam.params import Gate

FEATURES = "Inception"  # what the protocol's name of the FID must hold


@dataclass(frozen=True)
class GateResult:
    """Whether students' numbers may be believed; `reason` says why in a sentence."""

    status: Literal["passed", "not passed", "not applicable"]
    reason: str

    def __str__(self) -> str:
        return f"gate {self.status}: {self.reason}"


def check_gate(rows: pd.DataFrame, protocol: dict[str, Any], gate: Gate | None) -> GateResult:
    """Compare the teacher's saved FID with the expected one.

    rows: evaluation rows (method, dataset, guidance_scale, steps, images, fid); protocol: what they were measured by.
    Not applicable where the profile expects nothing, or where the numbers are of another kind than the expected one.
    """
    if gate is None:
        return GateResult("not applicable", "no number of this teacher's is known that this profile could be held to")
    teacher = rows[(rows["method"] == "Teacher") & (rows["dataset"] == "unseen")]
    teacher = teacher[(teacher["guidance_scale"] == gate.guidance_scale) & (teacher["steps"] == gate.steps)]
    teacher = teacher.dropna(subset=["fid"])
    expected = f"{gate.fid:g} within {gate.tolerance:g} at w = {gate.guidance_scale:g}, {gate.steps} steps"
    if teacher.empty:
        return GateResult("not passed", f"its teacher has not been measured yet ({expected}); believe no student's FID")
    if other := _other_kind(teacher, protocol, gate):
        return GateResult("not applicable", f"{other}, which {expected} does not hold for")
    fid = float(teacher["fid"].iloc[0])
    found = f"the teacher's FID is {fid:.2f}, expected is {expected}, on {protocol['set']}"
    if abs(fid - gate.fid) <= gate.tolerance:
        return GateResult("passed", found)
    return GateResult("not passed", f"{found}; find out why before believing any student's FID")


def _other_kind(teacher: pd.DataFrame, protocol: dict[str, Any], gate: Gate) -> str:
    """In what the measurement is of another kind than the expected number, in a few words; empty if in nothing."""
    name, test_set, images = protocol.get("fid", ""), protocol.get("set", ""), int(teacher["images"].iloc[0])
    if FEATURES not in str(name):
        return f"the FID is {name or 'of unrecorded features'}"
    if test_set not in gate.sets:
        return f"the test set is {test_set or 'not recorded'}"
    return "" if images == gate.images else f"{images:,} images were drawn, not {gate.images:,}"
