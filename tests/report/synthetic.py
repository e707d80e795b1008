"""Made-up metrics for tests of the report: LCM and SPLAM as the paper orders them, plus seed noise."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

QUOTE = {
    **{"protocol": "shapes", "fid_name": "FID (EfficientNet-Lite0)", "clip_name": "CLIP score (tiny, in-domain)"},
    **{"references": "0123", "captions": "45e67", "dtype": "float32", "first_sample_seed": 1000000},
}
SETS = {"unseen": 1.0, "unseen-small": 1.1, "seen": 0.97}
STEP_FACTOR = {1: 2.6, 2: 1.25, 4: 1.0, 50: 1.0}
SOLVER_FACTOR = {1: 4.0, 2: 2.6, 4: 1.6}
STUDENT = ("method", "variant", "guidance_scale", "skip", "multiple_estimation")


def measured(facts: dict, dataset: str, steps: int | None, fid: float | None, clip: float) -> dict:
    """One evaluation row."""
    scores = {"fid": fid, "kid": 0.1, "precision": 0.5, "recall": 0.4, "clip_score": clip, "rmse_teacher": 0.2}
    scores["fid_teacher"] = None if fid is None or dataset == "seen" else 0.8 * fid
    images = 500 if dataset in ("unseen-small", "unseen-curve") else 1000
    return {"final": True, "ablation": False, **facts, "dataset": dataset, "steps": steps, "images": images, **scores}


def students() -> Iterator[tuple[tuple, float]]:
    """STUDENT and the FID in 4 steps: SPLAM scaled is 10 % better than LCM, raw 30 % worse."""
    yield from ((("LCM (fix w)", "", w, 20, False), 900 + 20 * w) for w in (3, 8))
    yield from ((("LCM (fix w)", "", 3, k, False), 960 * (k / 20) ** 0.4) for k in (100, 200))
    yield from ((("LCM-LoRA", "", w, 20, False), 1250) for w in (3, 8))
    yield ("LCM*", "", 8, 20, False), 1300
    for variant, factor in (("raw input", 1.3), ("scaled input", 0.9)):
        yield from ((("SPLAM", variant, w, 20, True), factor * (900 + 20 * w)) for w in (3, 5, 8, 12))
        yield from ((("SPLAM", variant, w, 100, True), factor * (890 + 20 * w)) for w in (3, 8))
        yield ("SPLAM", variant, 3, 100, False), factor * 960 * 1.2


def student_rows(seeds: int) -> Iterator[dict]:
    """Rows of every distilled run."""
    rng = np.random.default_rng(0)
    for (student, base), seed in ((student, seed) for student in students() for seed in range(seeds)):
        facts = dict(zip(STUDENT, student, strict=True)) | {"seed": seed, "iteration": 100, "sampler": "consistency"}
        facts |= {"run": " ".join(map(str, student)), "system": " ".join(map(str, student))}
        luck, clip = rng.normal(0, 0.01), 60 + facts["guidance_scale"] / 2
        for dataset, steps in ((dataset, steps) for dataset in SETS for steps in (1, 2, 4)):
            fid = base * STEP_FACTOR[steps] * SETS[dataset] * np.exp(luck + rng.normal(0, 0.003))
            yield measured(facts, dataset, steps, fid, clip - 20 / steps + luck)
        if facts["guidance_scale"] == 3 and facts["method"] in ("LCM (fix w)", "SPLAM"):
            yield from curve_rows(facts, base, rng) if facts["skip"] == 20 or facts["multiple_estimation"] else ()


def curve_rows(facts: dict, base: float, rng: np.random.Generator) -> Iterator[dict]:
    """Fig. 2b's snapshots: SPLAM starts worse and goes on improving, LCM worsens late."""
    slow = {"LCM (fix w)": 0.5, "SPLAM": 0.9 if facts["skip"] == 20 else 0.3}[facts["method"]]
    for iteration in (10, 15, 20, 25, 30, 40, 50, 60, 70, 80, 90, 100):
        late = 0.002 * max(0, iteration - 50) if facts["method"] != "SPLAM" else -0.0005 * iteration
        fid = base * np.exp(slow * 10 / iteration + late + rng.normal(0, 0.003))
        snapshot = {**facts, "iteration": iteration, "final": iteration == 100}
        yield measured(snapshot, "unseen-curve", 4, fid, 60.0)


def baseline_rows(seeds: int = 1) -> Iterator[dict]:
    """DDIM, DPM-Solver(++), UniPC, the network undistilled and the teacher: one row each for every seed."""
    for w, seed in itertools.product((3, 8), range(seeds)):
        facts = {"run": "", "guidance_scale": w, "seed": seed, "sampler": "ddim, trailing"}
        for dataset in SETS:
            for n, method in enumerate(("DDIM", "DPM-Solver", "DPM-Solver++", "UniPC")):
                for steps, factor in SOLVER_FACTOR.items():
                    fid = (1000 + 20 * w - 10 * n) * factor
                    yield measured({**facts, "system": method, "method": method}, dataset, steps, fid, 25 + 5 * steps)
            teacher = {**facts, "system": "teacher", "method": "Teacher"}
            yield measured(teacher, dataset, 50, 700 + 20 * w, 66 + w / 2)
            again = {**facts, "system": "teacher-again", "method": "Teacher, second draw"}
            yield measured(again, dataset, 50, 700 + 20 * w, 66 + w / 2) | {"fid_teacher": 400.0}
        start = {**facts, "system": "undistilled", "method": "Undistilled"}
        yield from (measured(start, d, steps, 1500 * STEP_FACTOR[steps], 30.0) for d in SETS for steps in (1, 2, 4))
        yield measured({**start, "iteration": 0}, "unseen-curve", 4, 1500.0, 50.0)


def delta_rows(seeds: int) -> Iterator[dict]:
    """delta(t, 20) of LCM and SPLAM (scaled input), SPLAM's 10 % lower."""
    rng = np.random.default_rng(1)
    for method, variant, factor in (("LCM (fix w)", "", 1.0), ("SPLAM", "scaled input", 0.9)):
        facts = {"run": f"{method} w3", "method": method, "variant": variant, "guidance_scale": 3, "skip": 20}
        for seed, t in ((seed, t) for seed in range(seeds) for t in range(119, 980, 20)):
            value = factor * (0.05 + t / 8000) * np.exp(rng.normal(0, 0.01))
            row = facts | {"seed": seed, "t": t, "delta_rms": value, "delta_rms_se": value / 50}
            yield row | {"delta_l2": value * 20, "delta_l2_se": value / 3, "x0_error_rms": 0.2 + t / 2000}


def error_rows(seeds: int) -> Iterator[dict]:
    """Distances from the teacher's solution, in proportion to t and falling with gamma; of undistilled at gamma = 1."""
    systems = {"LCM (fix w)": (1.0, [1.0]), "SPLAM": (0.8, [0.0, 0.5, 1.0]), "Undistilled": (2.0, [1.0])}
    for (method, (factor, gammas)), seed in itertools.product(systems.items(), range(seeds)):
        facts = {"method": method, "variant": "scaled input" * (method == "SPLAM"), "guidance_scale": 3, "seed": seed}
        facts |= {} if method == "Undistilled" else {"skip": 20, "multiple_estimation": method == "SPLAM"}
        for t, gamma in itertools.product((59, 499, 999), gammas):
            yield facts | {"t": t, "gamma": gamma, "rmse": factor * t / 1000 * (2 - gamma)}


def write_metrics(folder: Path, seeds: int = 3) -> Path:
    """All metrics files of a profile under folder/metrics, latencies in the paper's ratios; returns folder."""
    (folder / "metrics/evaluate").mkdir(parents=True)
    floors = [("Real images", 287, 80), ("VAE reconstruction", 332, 78), ("Shuffled captions", None, 5)]
    floors = [measured({"system": "floors", "method": m}, dataset, None, *n) for dataset in SETS for m, *n in floors]
    quoted = {"evaluate/students": student_rows(seeds), "evaluate/baselines": baseline_rows(seeds), "floors": floors}
    frames = {name: pd.DataFrame(rows).assign(**QUOTE) for name, rows in quoted.items()}
    timed = [("SPLAM", 1, 1, 0.009), ("SPLAM", 2, 1, 0.012), ("SPLAM", 4, 1, 0.019)]
    timed += [("UniPC", 4, 3, 0.026), ("Teacher", 50, 3, 0.259)]
    timed = pd.DataFrame(timed, columns=["method", "steps", "guidance_scale", "seconds_median"])
    calls = timed["steps"] * (1 + (timed["guidance_scale"] > 1))
    frames["latency"] = timed.assign(unet_seconds_median=0.002 * calls)
    frames["delta"] = pd.DataFrame(delta_rows(seeds))
    frames["errors/all"] = pd.DataFrame(error_rows(seeds))
    (folder / "metrics/errors").mkdir()
    for name, frame in frames.items():
        frame.to_csv(folder / f"metrics/{name}.csv", index=False)
    world = [row for row in baseline_rows() if row["method"].startswith("D")]
    (folder / "metrics/world.json").write_text(json.dumps({"rows": world}))
    return folder


def write_samples(folder: Path) -> Path:
    """Random pictures for the overview and Figures 3a, 4 and 5; returns folder."""
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (4, 2, 8, 8, 3), dtype=np.uint8)
    prompts = ["a striped red star on a blue background", "a plain pink heart on a red background"]
    for name in ("overview", "figure3a", "figure4", "figure5"):
        np.savez(folder / f"{name}.npz", images=images, columns=["a", "b", "c", "d"], prompts=prompts, title=name)
    return folder
