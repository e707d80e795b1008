"""The rows of one system: a distilled run, a baseline (the undistilled teacher) or somebody else's pipeline.

Each is drawn and measured in the same way. Every row carries what its numbers must be quoted with.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from splam.config import Params, Run, suggestion
from splam.data.images import resize, to_pixels
from splam.data.testsets import HeldOut, dataset_sizes, held_out_set
from splam.measure.clip import clip_score, load_scorers
from splam.measure.draw import Draw, baseline_draw, first_seed, in_batches, student_draw, with_other_noise
from splam.measure.fid import load_features
from splam.measure.measure import Measure, Paired, References
from splam.networks.pipelines import draw_images, open_any
from splam.networks.student import load_unet
from splam.networks.teacher import Teacher, open_teacher

COLUMNS = (
    *("system", "run", "method", "variant", "guidance_scale", "skip", "multiple_estimation", "seed", "iteration"),
    *("final", "ablation", "steps", "dataset", "images", "fid", "fid_teacher", "kid", "precision", "recall"),
    *("clip_score", "clip_score_beside", "caption_accuracy", "rmse_teacher"),
    *("protocol", "fid_name", "clip_name", "clip_name_beside"),
    *("references", "captions", "dtype", "first_sample_seed", "sampler"),
)
CURVE = "unseen-curve"  # Fig. 2b: the first images of the unseen set, at every snapshot
METHOD_NAMES = {"lcm": "LCM (fix w)", "lcm_star": "LCM*", "splam": "SPLAM"}

Row = dict[str, Any]
Show = Callable[[str, int, np.ndarray], object]  # called with (dataset, steps, images) of every set that is drawn


class System(NamedTuple):
    """What a system is, the function that draws, and for every w it has rows for the teacher's images, if any."""

    facts: Row
    draw: Draw
    teachers: dict[float, Paired | None]


class Bench:
    """All that measuring the systems of one profile needs; build: where the stages before it wrote."""

    def __init__(self, params: Params, build: Path, show: Show = lambda *_: None):
        self.params, self.build, self.show = params, build, show
        self.teacher = open_teacher(params, build / "teacher")
        self.extract = load_features(params.evaluation.features, self.teacher.device)
        self.clips = load_scorers(params.evaluation, self.teacher.device)
        self.measure, self.teacher_images = cache(self._measure), cache(self._teacher_images)

    def _measure(self, dataset: str) -> Measure:
        return Measure(References.load(self.build / "references" / f"{dataset}.npz"), self.extract, self.clips)

    def _teacher_images(self, guidance_scale: float) -> Paired | None:
        path = self.build / "teacher_samples" / f"w{guidance_scale:g}.npy"
        return Paired(images := np.load(path), self.extract(images)) if path.is_file() else None

    def counts(self, dataset: str) -> dict[str, int]:
        """How many of a set's first images the rows of each dataset are about: {dataset: images}."""
        evaluation = self.params.evaluation
        if dataset == CURVE:
            return {CURVE: evaluation.curve_images}
        counts = {dataset: len(self.measure(dataset).references.prompts)}
        parted = dataset == "unseen" and "unseen-small" not in dataset_sizes(self.params)
        if parted and evaluation.small_images < counts["unseen"]:  # Table 2b
            counts["unseen-small"] = evaluation.small_images
        return counts

    def rows(self, system: System, dataset: str, steps: int, images: np.ndarray | None = None) -> Iterator[Row]:
        """The rows of one set of images, which are drawn here unless they are given."""
        counts, test_set = self.counts(dataset), "unseen" if dataset == CURVE else dataset
        measure = self.measure(test_set)
        if images is None:
            captions = measure.references.prompts[: max(counts.values())]
            images = in_batches(system.draw, captions, steps, self.params, measure.references.size)
        self.show(dataset, steps, images)
        row = measure(images)
        for (w, teacher), (name, count) in product(system.teachers.items(), counts.items()):
            facts = system.facts | {"guidance_scale": w, "dataset": name, "steps": steps}
            yield self.shared(test_set) | facts | row(count, teacher if test_set == "unseen" else None)

    def shared(self, dataset: str) -> Row:
        """COLUMNS as all rows of a dataset have them, unless a system's facts say otherwise."""
        dtype = "bfloat16 autocast" if self.teacher.bf16 else "float32"
        seeds = {"seed": self.params.seed, "first_sample_seed": first_seed(self.params)}
        facts = {"dtype": dtype, "final": True, "ablation": False} | seeds
        return dict.fromkeys(COLUMNS) | self.measure(dataset).references.quote | facts


def method_name(run: Run) -> str:
    """A run's method as the tables name it."""
    name = METHOD_NAMES[run.method]
    return f"{name.removesuffix(' (fix w)')}-LoRA" if run.adapter else name


def describe(run: Run) -> Row:
    """The columns that say which run a row belongs to."""
    variant = {"raw": "raw input", "unit_variance": "scaled input"}[run.input_scaling]
    if run.gamma_conditioning == "equal_snr_time":
        variant = "equal-SNR time"
    facts = {"system": run.name, "run": run.name, "method": method_name(run)}
    facts |= {"variant": run.variant or (variant if run.method == "splam" else "")}
    kept = ("guidance_scale", "skip", "multiple_estimation", "seed", "ablation")
    return facts | {key: getattr(run, key) for key in kept}


def evaluate(params: Params, name: str, build: Path, show: Show = lambda *_: None) -> list[Row]:
    """All rows of a run, a baseline or a pipeline of the parameters, each with COLUMNS; build: what the stages wrote.

    Raises ValueError for another name, and FileNotFoundError if a stage has not run.
    """
    for known, rows in ((params.runs, run_rows), (params.baselines, baseline_rows), (params.pipelines, pipeline_rows)):
        if name in known:
            return list(rows(Bench(params, build, show), name))
    known = [*params.runs, *params.baselines, *params.pipelines]
    raise ValueError(f"there is no run, baseline or pipeline {name!r}{suggestion(name, known)}")


def run_rows(bench: Bench, name: str) -> Iterator[Row]:
    """One distilled run: its steps, datasets and snapshots."""
    params, run, folder = bench.params, bench.params.runs[name], bench.build / "runs" / name
    compared = {run.guidance_scale: bench.teacher_images(run.guidance_scale)}

    def system(weights: str, iteration: int) -> System:
        unet = load_unet(folder / weights, bench.teacher.unet)
        when = {"iteration": iteration, "final": iteration == run.training.iterations, "sampler": "consistency"}
        return System(describe(run) | when, student_draw(bench.teacher, unet, run), compared)

    final = system("pipeline/unet", run.training.iterations)
    datasets = params.evaluation.datasets.get(run.name, ["unseen"])
    for dataset, steps in product(datasets, params.evaluation.steps):
        yield from bench.rows(final, dataset, steps)
    for iteration in [i for i in run.training.snapshots if i <= run.training.iterations]:
        yield from bench.rows(system(f"snapshots/{iteration:06d}", iteration), CURVE, params.evaluation.curve_steps)


def baseline_rows(bench: Bench, name: str) -> Iterator[Row]:
    """The undistilled teacher at every w of a baseline; what is drawn at one w is drawn once, and compared at each."""
    baseline, evaluation = bench.params.baselines[name], bench.params.evaluation
    consistency, drawn_at = baseline.sampler == "consistency", baseline.drawn_at
    teachers = {w: bench.teacher_images(w) for w in baseline.guidance_scales}
    sampler = baseline.sampler if consistency else f"{baseline.sampler}, trailing"
    seed = first_seed(bench.params, baseline.other_noise)
    facts = {"system": name, "method": baseline.method, "sampler": sampler, "first_sample_seed": seed}
    for w in baseline.guidance_scales if drawn_at is None else [drawn_at]:
        draw = baseline_draw(bench.teacher, baseline.sampler, w)
        draw = with_other_noise(draw) if baseline.other_noise else draw
        system = System(facts, draw, {w: teachers[w]} if drawn_at is None else teachers)
        for dataset, steps in product(baseline.datasets, baseline.steps):
            own = (baseline.sampler, dataset, steps) == ("ddim", "unseen", evaluation.teacher_steps)
            stored = bench.teacher_images(w) if own and not baseline.other_noise else None  # by another stage
            yield from bench.rows(system, dataset, steps, stored and stored.images)
        if consistency and drawn_at == 1:  # what every student starts from
            start = system._replace(facts=facts | {"iteration": 0})
            yield from bench.rows(start, CURVE, evaluation.curve_steps)


def pipeline_rows(bench: Bench, name: str) -> Iterator[Row]:
    """A third-party pipeline, which is not compared with the teacher's images."""
    chosen = bench.params.pipelines[name]
    dtype, w = getattr(torch, chosen.dtype), chosen.guidance_scale
    pipeline = open_any(chosen.source, chosen.scheduler, chosen.lora, dtype).to(bench.teacher.device)
    facts = {"system": name, "method": chosen.method}
    facts |= {"dtype": chosen.dtype, "sampler": type(pipeline.scheduler).__name__}
    system = System(facts, partial(draw_images, pipeline, guidance_scale=w), {w: None})
    for dataset, steps in product(chosen.datasets, chosen.steps):
        yield from bench.rows(system, dataset, steps)


def floor_rows(bench: Bench, data: Path) -> Iterator[Row]:
    """The floors of every dataset, with COLUMNS; data: what the data stage wrote."""
    params = bench.params
    for dataset in dataset_sizes(params):
        counts, facts = bench.counts(dataset), {"system": "floors", "seed": None, "first_sample_seed": None}
        held_out = held_out_set(params.data, data, dataset, counts[dataset])
        for row in floors(bench.teacher, bench.measure(dataset), held_out, counts, params.evaluation.batch_size):
            yield bench.shared(dataset) | facts | row  # without seeds: nothing is drawn


def floors(
    teacher: Teacher, measure: Measure, held_out: HeldOut, counts: dict[str, int], batch_size: int
) -> Iterator[Row]:
    """Real images, reconstructions and shuffled captions, each over the first images that `counts` names.

    counts: {dataset: images}, the whole set first. Real images that are among the references get a CLIP score, but no
    distance to them.
    """
    real = np.concatenate(list(held_out.real(held_out.size)))
    sets = {"Real images": real, "VAE reconstruction": reconstructions(teacher, held_out, batch_size)}
    for method, images in sets.items():
        among = method == "Real images" and not held_out.independent
        unknown = dict.fromkeys(("fid", "kid", "precision", "recall")) if among else {}
        row = measure(images)
        yield from ({"method": method, "dataset": d, **row(n), **unknown} for d, n in counts.items())
    row = {"method": "Shuffled captions", "dataset": next(iter(counts)), "images": len(real), "fid": None}
    for column, clip in measure.clips.items():  # by 7: other pictures' captions
        text = np.roll(measure.references.clip_text[column], 7, axis=0)
        row[column] = clip_score(clip.image_features(real), text)
    yield row


def reconstructions(teacher: Teacher, held_out: HeldOut, batch_size: int) -> np.ndarray:
    """What the autoencoder makes, at the teacher's own size, of the prompts' real images: uint8 (n, size, size, 3)."""
    parts = []
    for images in held_out.real(teacher.image_size):
        for pixels in to_pixels(images).split(batch_size):
            parts.append(resize(teacher.decode(teacher.encode(pixels)).numpy(), held_out.size))
    return np.concatenate(parts)


def summary(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """What `dvc metrics show` prints: {dataset: {"fid_4": ...}}, or "fid_4_w3" where a system has several w.

    FIDs to 0.1, CLIP scores to 0.01; without Fig. 2b's points. Floors, which have no steps, go by their method.
    """
    several = len({row["guidance_scale"] for row in rows}) > 1
    nested: dict[str, dict[str, float]] = {}
    for row in (row for row in rows if row["dataset"] != CURVE):
        end = f"{row['steps']}_w{row['guidance_scale']:g}" if several else row["steps"]
        end = end or row["method"].lower().replace(" ", "_")
        for metric, digits in (("fid", 1), ("fid_teacher", 1), ("clip_score", 2)):
            if row[metric] is not None:
                nested.setdefault(row["dataset"], {})[f"{metric}_{end}"] = round(row[metric], digits)
    return nested
