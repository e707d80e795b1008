"""Plausible made-up metrics, for tests of the report: LCM and SPLAM as the paper orders them, plus seed noise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

PROTOCOL = {
    "fid": "FID (EfficientNet-Lite0)",
    "clip_score": "CLIP score (tiny, in-domain)",
    "references": "0123",
    "captions": "4567",
    "baseline_times": "trailing",
}
STEP_FACTOR = {1: 2.6, 2: 1.25, 4: 1.0, 50: 1.0}
SOLVER_FACTOR = {1: 4.0, 2: 2.6, 4: 1.6}


def student_rows(seeds: int, rng: np.random.Generator) -> list[dict]:
    """Rows of every distilled run: SPLAM scaled is 10 % better than LCM, raw 30 % worse."""
    systems = [("LCM (fix w)", "", w, 20, False, 900 + 20 * w) for w in (3, 8)]
    systems += [("LCM (fix w)", "", 3, k, False, 960 * (k / 20) ** 0.4) for k in (100, 200)]
    systems += [("LCM*", "", 8, 20, False, 1300), *(("LCM-LoRA", "", w, 20, False, 1250) for w in (3, 8))]
    for variant, factor in (("raw input", 1.3), ("scaled input", 0.9)):
        systems += [("SPLAM", variant, w, 20, True, factor * (900 + 20 * w)) for w in (3, 5, 8, 12)]
        systems += [("SPLAM", variant, w, 100, True, factor * (890 + 20 * w)) for w in (3, 8)]
        systems += [("SPLAM", variant, 3, 100, False, factor * 960 * 1.2)]
    rows = []
    for method, variant, w, k, me, base in systems:
        for seed in range(seeds):
            run = f"{method} {variant} w{w} k{k} {me}"
            facts = {
                "system": f"{run} s{seed}",
                "run": run,
                "method": method,
                "variant": variant,
                "guidance_scale": w,
                "skip": k,
            }
            facts |= {"multiple_estimation": me, "seed": seed, "iteration": 100, "final": True}
            luck = rng.normal(0, 0.01)
            for dataset, shift in (("unseen", 1.0), ("unseen-small", 1.1), ("seen", 0.97)):
                for steps in (1, 2, 4):
                    fid = base * STEP_FACTOR[steps] * shift * np.exp(luck + rng.normal(0, 0.003))
                    rows.append(measured(facts, dataset, steps, fid, 60 + w / 2 - 20 / steps + luck))
            if w == 3 and method in ("LCM (fix w)", "SPLAM") and (k == 20 or me):
                rows += curve_rows(facts, base, rng)
    return rows


def measured(facts: dict, dataset: str, steps: int | None, fid: float | None, clip: float) -> dict:
    """One evaluation row."""
    images = 500 if dataset in ("unseen-small", "unseen-curve") else 1000
    scores = {"fid": fid, "kid": 0.1, "precision": 0.5, "recall": 0.4, "clip_score": clip, "paired_distance": 0.2}
    scores["fid_teacher"] = None if fid is None or dataset == "seen" else 0.8 * fid
    return {**facts, "dataset": dataset, "steps": steps, "images": images, **scores}


def curve_rows(facts: dict, base: float, rng: np.random.Generator) -> list[dict]:
    """Fig. 2b's snapshots: SPLAM starts worse and goes on improving, LCM worsens late."""
    rows = []
    slow = {"LCM (fix w)": 0.5, "SPLAM": 0.9 if facts["skip"] == 20 else 0.3}[facts["method"]]
    for iteration in (10, 25, 50, 75, 100):
        late = 0.002 * max(0, iteration - 50) if facts["method"] != "SPLAM" else -0.0005 * iteration
        fid = base * np.exp(slow * 10 / iteration + late + rng.normal(0, 0.003))
        facts = {**facts, "iteration": iteration, "final": iteration == 100}
        rows.append(measured(facts, "unseen-curve", 4, fid, 60.0))
    return rows


def baseline_rows() -> list[dict]:
    """DDIM, DPM-Solver(++), UniPC, the network undistilled and the teacher: one row each, whatever the seeds."""
    rows = []
    for w in (3, 8):
        facts = {"system": f"baselines-w{w}", "run": "", "variant": "", "guidance_scale": w, "skip": None}
        facts |= {"multiple_estimation": None, "seed": 0, "iteration": None, "final": True}
        for dataset in ("unseen", "unseen-small", "seen"):
            for n, method in enumerate(("DDIM", "DPM-Solver", "DPM-Solver++", "UniPC")):
                for steps in (1, 2, 4):
                    fid = (1000 + 20 * w - 10 * n) * SOLVER_FACTOR[steps]
                    rows.append(measured({**facts, "method": method}, dataset, steps, fid, 25 + 5 * steps))
            rows.append(measured({**facts, "method": "Teacher"}, dataset, 50, 700 + 20 * w, 66 + w / 2))
        start = {**facts, "method": "Undistilled"}
        rows += [measured(start, "unseen", steps, 1000 * STEP_FACTOR[steps], 50.0) for steps in (1, 2, 4)]
        rows.append(measured({**start, "iteration": 0}, "unseen-curve", 4, 1100.0, 50.0))
    return rows


def floor_rows() -> list[dict]:
    """Real images, reconstructions and shuffled captions for each dataset."""
    facts = {"system": "floors", "run": "", "variant": "", "seed": 0, "final": True}
    rows = []
    for dataset in ("unseen", "unseen-small", "seen"):
        for method, fid, clip in (("Real images", 287, 80), ("VAE reconstruction", 332, 78)):
            rows.append(measured({**facts, "method": method}, dataset, None, fid, clip))
        rows.append(measured({**facts, "method": "Shuffled captions"}, dataset, None, None, 5.0))
    return rows


def delta_rows(seeds: int, rng: np.random.Generator) -> list[dict]:
    """delta(t, 20) of LCM and SPLAM (scaled input), SPLAM's 10 % lower."""
    rows = []
    for method, variant, factor in (("LCM (fix w)", "", 1.0), ("SPLAM", "scaled input", 0.9)):
        for seed in range(seeds):
            for t in range(119, 980, 20):
                value = factor * (0.05 + t / 8000) * np.exp(rng.normal(0, 0.01))
                row = {"run": f"{method} {variant} w3 k20 {method == 'SPLAM'}", "method": method, "variant": variant}
                row |= {"guidance_scale": 3, "seed": seed, "t": t, "delta_rms": value, "delta_rms_se": value / 50}
                row |= {
                    "delta_l2": value * 20,
                    "delta_l2_se": value / 3,
                    "x0_error_rms": 0.2 + t / 2000,
                    "images": 1000,
                }
                rows.append(row)
    return rows


def latency_rows() -> list[dict]:
    """Medians in the paper's ratios."""
    timed = [("SPLAM", 1, 0.009), ("SPLAM", 2, 0.012), ("SPLAM", 4, 0.019), ("DPM-Solver++", 4, 0.026)]
    timed += [("UniPC", 4, 0.026), ("LCM-LoRA", 4, 0.019), ("Teacher", 50, 0.259)]
    return [{"method": m, "steps": n, "seconds_median": s, "seconds": [s, s, s]} for m, n, s in timed]


def write_metrics(folder: Path, seeds: int = 3) -> Path:
    """All metrics files of a profile under folder/metrics; returns folder."""
    rng = np.random.default_rng(0)
    students = student_rows(seeds, rng)
    parts = {"evaluate/students": students, "evaluate/baselines": baseline_rows(), "floors": floor_rows()}
    world = [r for r in baseline_rows() if r["dataset"] == "unseen" and r["method"].startswith("D")]
    parts |= {"delta": delta_rows(seeds, rng), "latency": latency_rows(), "world": world}
    for name, rows in parts.items():
        path = folder / "metrics" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        protocol = {"device": "a CPU"} if name == "latency" else PROTOCOL
        path.write_text(json.dumps({"protocol": protocol, "rows": rows}))
    return folder


def write_samples(folder: Path) -> Path:
    """Random pictures for Figures 3a, 4 and 5; returns folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)

    def images(*shape: int) -> np.ndarray:
        return rng.integers(0, 256, (*shape, 32, 32, 3), dtype=np.uint8)

    prompts = np.array(["red apple on a yellow background", "snowman on a red background"])
    np.savez(folder / "figure3a.npz", images=images(2, 4), prompts=prompts, guidance_scales=[3.0, 5.0, 8.0, 12.0])
    methods = {"methods": np.array(["LCM", "SPLAM"]), "steps": [1, 2, 4], "prompts": prompts}
    np.savez(folder / "figure4.npz", images=images(2, 3, 2), teacher=images(2), teacher_steps=50, **methods)
    columns = np.array(["LCM-LoRA, 4 steps", "LCM, 4 steps", "SPLAM, 4 steps", "Teacher, 50 steps"])
    np.savez(folder / "figure5.npz", images=images(4, 2), columns=columns, prompts=prompts)
    return folder
