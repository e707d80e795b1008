"""The gate: before a student's number is believed, its teacher must give the number that is known of it.

An evaluation that is off by anything (captions, crop, resizing, features) is off for the teacher too.
"""

import pandas as pd

from splam.config import Gate
from splam.report.metrics import where


def check_gate(rows: pd.DataFrame, gate: Gate | None, steps: int) -> tuple[str, str]:
    """Whether students' numbers may be believed: "passed", "not passed" or "not applicable", and a sentence why.

    steps: the teacher's, of evaluation.teacher_steps.
    """
    if gate is None:
        return "not applicable", "no number of this teacher's is known that this profile could be held to"
    at = {"guidance_scale": gate.guidance_scale, "steps": steps}
    teacher = where(rows, method="Teacher", dataset="unseen", **at).dropna(subset=["fid"])
    expected = f"{gate.fid:g} within {gate.tolerance:g} at w = {gate.guidance_scale:g}, {steps} steps"
    if teacher.empty:
        return "not passed", f"its teacher has not been measured yet ({expected}); believe no student's FID"
    row = teacher.iloc[0]
    others = {
        f"the FID is {row['fid_name'] or 'of unrecorded features'}": "Inception" not in row["fid_name"],
        f"the test set is {row['protocol'] or 'not recorded'}": row["protocol"] not in gate.sets,
        f"{row['images']:,.0f} images were drawn, not {gate.images:,}": row["images"] != gate.images,
    }
    if other := next((text for text, differs in others.items() if differs), ""):
        return "not applicable", f"{other}, which {expected} does not hold for"
    found = f"the teacher's FID is {row['fid']:.2f}, expected is {expected}, on {row['protocol']}"
    if abs(row["fid"] - gate.fid) <= gate.tolerance:
        return "passed", found
    return "not passed", f"{found}; find out why before believing any student's FID"
