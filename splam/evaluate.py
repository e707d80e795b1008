"""Evaluation of one system: draw images for a fixed list of captions and seeds, and measure them.

Every system sees the same captions and noise, so that differences are paired.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from splam.data import emoji
from splam.loss import Objective, published_function
from splam.metrics import (
    FeatureStatistics,
    array_hash,
    clip_score,
    fid,
    file_hash,
    kid,
    load_clip,
    load_features,
    neighbour_distances,
    paired_distance,
    precision_recall,
)
from splam.models import (
    WEIGHTS,
    Teacher,
    assemble_tiny,
    guidance_embedding,
    guided_outputs,
    load_teacher,
    to_pixels,
)
from splam.params import Baseline, Params, ResolvedRun, load_params, resolve
from splam.sampling import baseline_scheduler, generators, sample_consistency, sample_scheduler
from splam.solver import guided_epsilon

FID_NAMES = {"efficientnet_lite0": "FID (EfficientNet-Lite0)", "inception": "FID"}
METHOD_NAMES = {"lcm": "LCM (fix w)", "lcm_star": "LCM*", "lcm_lora": "LCM-LoRA", "splam": "SPLAM"}
SCHEDULER_NAMES = {
    "ddim": "DDIM",
    "dpmsolver": "DPM-Solver",
    "dpmsolver++": "DPM-Solver++",
    "unipc": "UniPC",
}
DATASETS = ("unseen", "seen")


@dataclass(frozen=True)
class References:
    """What one dataset's samples are measured against; `prompts` and `levels` say what is drawn.

    captions (n, tokens, d), the text encoder's embeddings of the prompts, float32; features (m, d) of the reference
    images, and their neighbour_distances, radii (m,); real (n, d), features of other real images of the prompts
    themselves; clip_text (n, e) of the prompts.
    """

    prompts: list[str]
    captions: np.ndarray
    features: np.ndarray
    radii: np.ndarray
    real: np.ndarray
    clip_text: np.ndarray
    hashes: dict[str, str]

    def save(self, path: Path) -> None:
        """Write as one .npz."""
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(
            path,
            prompts=np.array(self.prompts),
            captions=self.captions,
            features=self.features,
            radii=self.radii,
            real=self.real,
            clip_text=self.clip_text,
            hashes=json.dumps(self.hashes),
        )

    @classmethod
    def load(cls, path: Path) -> References:
        """Read what the references stage wrote."""
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist: run the references stage (dvc repro references)")
        with np.load(path) as file:
            arrays = {k: file[k] for k in ("captions", "features", "radii", "real", "clip_text")}
            return cls([str(p) for p in file["prompts"]], **arrays, hashes=json.loads(str(file["hashes"])))


def held_out(data: Path, dataset: str, count: int) -> tuple[emoji.Split, emoji.Split, list[str]]:
    """One test split, parted: `count` images with their captions, levels in equal shares, and the references."""
    split = emoji.Split.load(data / dataset)
    if len(split) <= count:
        raise ValueError(f"dataset {dataset!r} has {len(split)} images, evaluation.images asks for {count} beside refs")
    drawn, rest = (
        emoji.Split(*(a[part] for a in (split.images, split.glyph, split.colour)))
        for part in (slice(count), slice(count, None))
    )
    return drawn, rest, drawn.captions(np.arange(count) % len(emoji.LEVELS))


def make_references(
    teacher: Teacher, data: Path, dataset: str, clip_folder: Path, features: str, count: int
) -> References:
    """What `count` samples of one dataset are measured against; features: a name that load_features knows."""
    extract = load_features(features)
    drawn, rest, prompts = held_out(data, dataset, count)
    text = load_clip(str(clip_folder)).text_features(prompts)
    hashes = {"references": array_hash(np.asarray(rest.images)), "captions": array_hash(np.array(prompts))}
    captions = teacher.embed(prompts).cpu().numpy()
    found = extract(rest.images)
    return References(
        prompts, captions, found, neighbour_distances(found), extract(drawn.images), np.asarray(text), hashes
    )


@dataclass(frozen=True)
class Measure:
    """Turns images of a dataset's prompts into a row of metrics."""

    references: References
    statistics: FeatureStatistics
    extract: Callable[[np.ndarray], np.ndarray]
    clip: object

    @classmethod
    def against(cls, references: References, features: str, clip_folder: Path) -> Measure:
        """With the networks that the references were measured by."""
        statistics = FeatureStatistics.of(references.features)
        return cls(references, statistics, load_features(features), load_clip(str(clip_folder)))

    def __call__(self, images: np.ndarray, teacher: np.ndarray | None = None) -> Callable[[int], dict]:
        """Features once, then metrics over the first n: images uint8 (n, h, w, 3), teacher's of the same noise."""
        features = self.extract(images)
        image_features = np.asarray(self.clip.image_features(images))

        def row(count: int) -> dict:
            precision, recall = precision_recall(self.references.features, features[:count], self.references.radii)
            return {
                "images": count,
                "fid": fid(self.statistics, FeatureStatistics.of(features[:count])),
                "kid": kid(self.references.features, features[:count], seed=0),
                "precision": precision,
                "recall": recall,
                "clip_score": clip_score(image_features[:count], self.references.clip_text[:count]),
                "paired_distance": None if teacher is None else paired_distance(images[:count], teacher[:count]),
            }

        return row


def protocol(params: Params, features: str, references: References, teacher: Teacher) -> dict:
    """What a number must be quoted with."""
    return {
        "fid": FID_NAMES[features],
        "clip_score": "CLIP score (tiny, in-domain)",
        "references": references.hashes["references"],
        "reference_images": len(references.features),
        "captions": references.hashes["captions"],
        "dtype": "bfloat16 autocast" if teacher.bf16 else "float32",
        "first_sample_seed": sample_seeds(params, 1)[0],
        "baseline_times": "trailing",
    }


def sample_seeds(params: Params, count: int) -> list[int]:
    """One seed a sample, away from the seeds of training."""
    return [1_000_000 * (params.seed + 1) + i for i in range(count)]


def in_batches(draw: Callable[[slice, list[int]], Tensor], params: Params, count: int, label: str) -> np.ndarray:
    """Draw `count` images in batches: draw(rows, seeds) gives uint8 (b, h, w, 3)."""
    seeds, size = sample_seeds(params, count), params.evaluation.batch_size
    parts = [slice(i, min(i + size, count)) for i in range(0, count, size)]
    return torch.cat([draw(p, seeds[p]) for p in tqdm(parts, desc=label, mininterval=2, leave=False)]).numpy()


@torch.no_grad()
def draw_student(
    teacher: Teacher, unet: nn.Module, captions: Tensor, resolved: ResolvedRun, steps: int, params: Params, label: str
) -> np.ndarray:
    """Images of a published student (Eq. 19): captions (n, tokens, d) to uint8 (n, h, w, 3)."""
    run, training = resolved.run, resolved.training
    objective = Objective(teacher.schedule, teacher.prediction_type)

    def draw(rows: slice, seeds: list[int]) -> Tensor:
        condition = None
        if run.method == "lcm_star":
            condition = guidance_embedding(torch.full((len(seeds),), run.guidance_scale), training.condition_width)
        consistency = published_function(teacher.network(unet, captions[rows], condition), objective)
        sources = generators(seeds)
        return teacher.decode(sample_consistency(consistency, sources, teacher.latent_shape, steps, teacher.schedule))

    return in_batches(draw, params, len(captions), label)


@torch.no_grad()
def draw_baseline(
    teacher: Teacher, captions: Tensor, scheduler: str, guidance_scale: float, steps: int, params: Params, label: str
) -> np.ndarray:
    """Images of the undistilled teacher by a diffusers scheduler, with classifier-free guidance."""
    empty = teacher.embed([""])

    def draw(rows: slice, seeds: list[int]) -> Tensor:
        def output(z: Tensor, t: Tensor) -> Tensor:
            return guided_epsilon(*guided_outputs(teacher, z, t, captions[rows], empty), guidance_scale)

        made = baseline_scheduler(scheduler, teacher.scheduler_config)
        return teacher.decode(sample_scheduler(made, output, generators(seeds), teacher.latent_shape, steps))

    return in_batches(draw, params, len(captions), label)


def load_unet(folder: Path, like: nn.Module) -> nn.Module:
    """A published UNet, of the same class as the teacher's."""
    unet = type(like).from_pretrained(folder, torch_dtype=torch.float32)
    return unet.eval().requires_grad_(False).to(like.device, memory_format=torch.channels_last)


def describe(resolved: ResolvedRun) -> dict:
    """The columns that say which run a row belongs to."""
    run = resolved.run
    variants = {"raw": "raw input", "unit_variance": "scaled input"}
    variant = variants[run.input_scaling] if run.method == "splam" else ""
    if run.method == "splam" and run.gamma_conditioning == "equal_snr_time":
        variant = "equal-SNR time"
    return {
        "system": resolved.name,
        "run": resolved.run_name,
        "method": METHOD_NAMES[run.method],
        "variant": variant,
        "guidance_scale": run.guidance_scale,
        "skip": run.skip,
        "multiple_estimation": run.multiple_estimation,
        "seed": resolved.seed,
    }


@dataclass(frozen=True)
class Bench:
    """All that evaluating systems of one profile needs, loaded once."""

    params: Params
    teacher: Teacher
    measures: dict[str, Measure]
    captions: dict[str, Tensor]
    teacher_images: Callable[[float], np.ndarray | None]

    @classmethod
    def load(cls, params: Params, build: Path, clip_folder: Path, datasets: list[str]) -> Bench:
        """From the teacher, references and teacher_samples stages under `build`."""
        teacher = load_teacher(build / "teacher", bf16=params.teacher.dtype == "bfloat16")
        references = {d: References.load(build / "references" / f"{d}.npz") for d in datasets}
        features = params.evaluation.features
        measures = {d: Measure.against(r, features, clip_folder) for d, r in references.items()}
        captions = {d: torch.from_numpy(r.captions).to(teacher.device) for d, r in references.items()}

        def teacher_images(guidance_scale: float) -> np.ndarray | None:
            path = build / "teacher_samples" / f"w{guidance_scale:g}.npy"
            return np.load(path) if path.is_file() else None

        return cls(params, teacher, measures, captions, teacher_images)

    def protocol(self) -> dict:
        """What the numbers must be quoted with, and for each dataset its own."""
        features = self.params.evaluation.features
        facts = {d: protocol(self.params, features, m.references, self.teacher) for d, m in self.measures.items()}
        return facts["unseen"] | {"datasets": facts}

    def rows(self, facts: dict, images: np.ndarray, dataset: str, steps: int) -> Iterator[dict]:
        """The rows of one set of images; the unseen set also gives its smaller part, for Table 2b."""
        w = facts["guidance_scale"]
        teacher = self.teacher_images(w) if dataset == "unseen" else None
        row = self.measures[dataset](images, teacher)
        yield {**facts, "dataset": dataset, "steps": steps, **row(len(images))}
        small = self.params.evaluation.small_images
        if dataset == "unseen" and small < len(images):
            yield {**facts, "dataset": "unseen-small", "steps": steps, **row(small)}


def evaluate_run(bench: Bench, name: str, folder: Path) -> list[dict]:
    """All rows of one distilled run: its steps, datasets and snapshots."""
    params = bench.params
    resolved = resolve(params, name)
    last = resolved.training.iterations
    facts = {**describe(resolved), "iteration": last, "final": True}
    unet = load_unet(folder / "pipeline" / "unet", bench.teacher.unet)
    rows = []
    for dataset in resolved.run.datasets:
        for steps in params.evaluation.steps:
            label = f"{name} {dataset} {steps} steps"
            images = draw_student(bench.teacher, unet, bench.captions[dataset], resolved, steps, params, label)
            rows += bench.rows(facts, images, dataset, steps)
    return rows + [snapshot_row(bench, resolved, facts, folder, i) for i in resolved.training.snapshots]


def snapshot_row(bench: Bench, resolved: ResolvedRun, facts: dict, folder: Path, iteration: int) -> dict:
    """One point of Fig. 2b: a smaller sample of the unseen set at one iteration."""
    params = bench.params
    steps, count = params.evaluation.curve_steps, params.evaluation.curve_images
    unet = load_unet(folder / "snapshots" / f"{iteration:06d}", bench.teacher.unet)
    captions = bench.captions["unseen"][:count]
    label = f"{resolved.name} iteration {iteration}"
    images = draw_student(bench.teacher, unet, captions, resolved, steps, params, label)
    final = iteration == resolved.training.iterations
    row = bench.measures["unseen"](images)(count)
    return {**facts, "iteration": iteration, "final": final, "dataset": "unseen-curve", "steps": steps, **row}


def baselines_at(params: Params, guidance_scale: float) -> dict[str, Baseline]:
    """The baselines that are measured at one guidance scale."""
    return {n: b for n, b in params.evaluation.baselines.items() if guidance_scale in b.guidance_scales}


def evaluate_baselines(bench: Bench, guidance_scale: float) -> list[dict]:
    """All rows of the undistilled teacher at one w: few-step schedulers, and "Teacher" (DDIM, 50 steps)."""
    params = bench.params
    facts = {"system": f"baselines-w{guidance_scale:g}", "run": "", "variant": "", "guidance_scale": guidance_scale}
    facts |= {"skip": None, "multiple_estimation": None, "seed": 0, "iteration": None, "final": True}
    rows = []
    for baseline in baselines_at(params, guidance_scale).values():
        for dataset in baseline.datasets:
            for steps in baseline.steps:
                label = f"{baseline.scheduler} w={guidance_scale:g} {dataset} {steps} steps"
                images = draw_baseline(
                    bench.teacher, bench.captions[dataset], baseline.scheduler, guidance_scale, steps, params, label
                )
                named = {**facts, "method": SCHEDULER_NAMES[baseline.scheduler]}
                rows += bench.rows(named, images, dataset, steps)
    images = bench.teacher_images(guidance_scale)
    if images is not None:
        rows += bench.rows({**facts, "method": "Teacher"}, images, "unseen", params.evaluation.teacher_steps)
    return rows


def floor_rows(bench: Bench, data: Path) -> list[dict]:
    """The floors of every dataset; those of the unseen set's smaller part too, for Table 2b."""
    small = bench.params.evaluation.small_images
    rows = []
    for dataset, measure in bench.measures.items():
        rows += dataset_floors(bench.teacher, measure, data, dataset, small if dataset == "unseen" else None)
    return rows


def dataset_floors(
    teacher: Teacher, measure: Measure, data: Path, dataset: str, small: int | None = None
) -> list[dict]:
    """What the metrics give for real images, for the autoencoder's reconstructions, and for wrong captions."""
    drawn, _, _ = held_out(data, dataset, len(measure.references.prompts))
    real = np.asarray(drawn.images)
    latents = torch.cat([teacher.encode(batch) for batch in to_pixels(real).split(250)])
    facts = {"system": "floors", "run": "", "variant": "", "seed": 0, "final": True, "steps": None}
    rows = []
    for method, images in (("Real images", real), ("VAE reconstruction", teacher.decode(latents).numpy())):
        row = measure(images)
        rows.append({**facts, "method": method, "dataset": dataset, **row(len(images))})
        if small is not None and small < len(images):
            rows.append({**facts, "method": method, "dataset": f"{dataset}-small", **row(small)})
    text = np.roll(measure.references.clip_text, 7, axis=0)  # 7 is no multiple of 3: other glyph, other level
    score = clip_score(np.asarray(measure.clip.image_features(real)), text)
    shuffled = {"method": "Shuffled captions", "dataset": dataset, "images": len(real)}
    return [*rows, {**facts, **shuffled, "fid": None, "clip_score": score}]


def main() -> None:
    """Measure one system of params.yaml and print or write its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("system", help="a name of matrix.systems, e.g. splam-w3-k100-me-s0 or baselines-w3")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--build", type=Path, default=Path("build"))
    parser.add_argument("--clip", type=Path, default=Path("models/tiny/clip"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    params = load_params(args.params)
    rows = evaluate_system(params, args.system, args.build, args.clip)
    text = json.dumps(rows, indent=1)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")
    else:
        print(text)


def evaluate_system(params: Params, system: str, build: Path, clip_folder: Path) -> dict:
    """{"protocol": ..., "rows": [...]} of one name of matrix.systems."""
    if system not in params.matrix.systems:
        raise ValueError(f"system {system!r} is not in params.yaml; there are: {', '.join(params.matrix.systems)}")
    if system.startswith("baselines-w"):
        scale = float(system.removeprefix("baselines-w"))
        used = {d for b in baselines_at(params, scale).values() for d in b.datasets} | {"unseen"}
        bench = Bench.load(params, build, clip_folder, [d for d in DATASETS if d in used])
        rows = evaluate_baselines(bench, scale)
    else:
        datasets = set(resolve(params, system).run.datasets) | {"unseen"}
        bench = Bench.load(params, build, clip_folder, [d for d in DATASETS if d in datasets])
        rows = evaluate_run(bench, system, build / "runs" / system)
    return {"protocol": bench.protocol(), "rows": rows}


def world_card(params: Params, data: Path, models: Path, scratch: Path) -> dict:
    """{"protocol": ..., "floors": [...], "rows": [...]}: FID of the tiny teacher's samplers on unseen combinations.

    The pipeline is put together in `scratch`. params.world.card says what is measured.
    """
    card = params.world.card
    assemble_tiny(scratch / "teacher", params.world.text_tokens, models)
    teacher = load_teacher(scratch / "teacher", bf16=card.bf16)
    references = make_references(teacher, data, "unseen", models / "clip", card.features, card.images)
    measure = Measure.against(references, card.features, models / "clip")
    captions = torch.from_numpy(references.captions)
    rows = []
    for sampler, w, steps in itertools.product(card.samplers, card.guidance_scales, card.steps):
        label = f"{sampler} w={w:g} {steps} steps"
        row = measure(draw_baseline(teacher, captions, sampler, w, steps, params, label))(card.images)
        facts = {"method": SCHEDULER_NAMES[sampler], "guidance_scale": w, "steps": steps, "dataset": "unseen"}
        rows.append(facts | row)
    facts = protocol(params, card.features, references, teacher) | {"teacher": file_hash(models / "unet" / WEIGHTS)}
    return {"protocol": facts, "floors": dataset_floors(teacher, measure, data, "unseen"), "rows": rows}


if __name__ == "__main__":
    main()
