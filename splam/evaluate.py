"""Evaluation of one system: draw images for a fixed list of captions and seeds, and measure them.

Every system sees the same captions and noise, so that differences are paired.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from splam.data.images import resize
from splam.data.testsets import HeldOut, dataset_names, emoji_set, held_out_set
from splam.loss import Objective, published_function
from splam.metrics import (
    ClipScorer,
    FeatureStatistics,
    RunningHash,
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
    warn_of_few,
)
from splam.models import (
    TINY_MODELS,
    WEIGHTS,
    Teacher,
    assemble_tiny,
    default_device,
    guidance_embedding,
    guided_outputs,
    load_teacher,
    to_pixels,
)
from splam.params import (
    Baseline,
    Card,
    Params,
    ParamsError,
    ResolvedRun,
    add_source_arguments,
    params_of,
    resolve,
    run_key,
)
from splam.pipelines import draw_images, open_any
from splam.sampling import baseline_scheduler, generators, sample_consistency, sample_scheduler
from splam.solver import guided_epsilon

TINY_CLIP = str(TINY_MODELS / "clip")
FID_NAMES = {"efficientnet_lite0": "FID (EfficientNet-Lite0)", "inception": "FID (Inception)"}
METHOD_NAMES = {"lcm": "LCM (fix w)", "lcm_star": "LCM*", "lcm_lora": "LCM-LoRA", "splam": "SPLAM"}
SCHEDULER_NAMES = {
    "ddim": "DDIM",
    "dpmsolver": "DPM-Solver",
    "dpmsolver++": "DPM-Solver++",
    "unipc": "UniPC",
}
CLIP_SCORES = ("clip_score", "clip_score_beside")  # columns of evaluation.clip's score and of clip_beside's
STORED_EMBEDDINGS = 1 << 30  # bytes of caption embeddings that are kept; 30,000 of Stable Diffusion's are 7 GB


@dataclass(frozen=True)
class References:
    """What one dataset's samples are measured against; `prompts` says what is drawn.

    protocol: the test set's name; size: pixels at which images are measured; captions (n, tokens, d), the text
    encoder's embeddings of the prompts, float32, or none (0,) where they would be too large; features (m, d) of the
    reference images, and their neighbour_distances, radii (m,); clip_text, of the prompts by every score's model: {name
    of the score: (n, e)}.
    """

    protocol: str
    size: int
    prompts: list[str]
    captions: np.ndarray
    features: np.ndarray
    radii: np.ndarray
    clip_text: dict[str, np.ndarray]
    hashes: dict[str, str]

    def save(self, path: Path) -> None:
        """Write as one .npz."""
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(
            path,
            protocol=self.protocol,
            size=self.size,
            prompts=np.array(self.prompts),
            captions=self.captions,
            features=self.features,
            radii=self.radii,
            hashes=json.dumps(self.hashes),
            **self.clip_text,
        )

    @classmethod
    def load(cls, path: Path) -> References:
        """Read what the references stage wrote."""
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist: run the references stage (dvc repro references)")
        with np.load(path) as file:
            arrays = {k: file[k] for k in ("captions", "features", "radii")}
            arrays["clip_text"] = {k: file[k] for k in CLIP_SCORES if k in file}
            facts = {"protocol": str(file["protocol"]), "size": int(file["size"])}
            return cls(
                prompts=[str(p) for p in file["prompts"]], **facts, **arrays, hashes=json.loads(str(file["hashes"]))
            )


def clip_models(params: Params) -> dict[str, str]:
    """The models of the profile's CLIP scores, by the column that the score stands in."""
    sources = (params.evaluation.clip, params.evaluation.clip_beside)
    return {column: source for column, source in zip(CLIP_SCORES, sources, strict=True) if source}


def load_scorers(params: Params) -> dict[str, ClipScorer]:
    """The models of the profile's CLIP scores, on the GPU where there is one."""
    prefix, device = params.evaluation.clip_prefix, default_device()
    return {column: load_clip(source, prefix, device) for column, source in clip_models(params).items()}


def clip_names(params: Params) -> dict[str, str]:
    """What the profile's CLIP scores are called: never without their model."""
    prefix = params.evaluation.clip_prefix
    before = f", {prefix.strip()!r} before captions" if prefix else ""
    models = {c: "tiny, in-domain" if source == TINY_CLIP else source for c, source in clip_models(params).items()}
    return {column: f"CLIP score ({model}{before})" for column, model in models.items()}


def make_references(teacher: Teacher, held_out: HeldOut, clips: dict[str, ClipScorer], features: str) -> References:
    """What samples of one test set are measured against; features: a name that load_features knows."""
    found, digits = reference_features(held_out, load_features(features, teacher.device))
    prompts = held_out.prompts
    text = {column: clip.text_features(prompts) for column, clip in clips.items()}
    hashes = {"references": digits, "captions": array_hash(np.array(prompts))}
    large = teacher.embed([""]).nbytes * len(prompts) > STORED_EMBEDDINGS
    captions = np.empty(0, np.float32) if large else teacher.embed(prompts).cpu().numpy()
    facts = {"protocol": held_out.protocol, "size": held_out.size, "hashes": hashes}
    return References(
        prompts=prompts, captions=captions, features=found, radii=neighbour_distances(found), clip_text=text, **facts
    )


def reference_features(held_out: HeldOut, extract: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, str]:
    """Features (m, d) of a test set's references, seen a batch at a time, and the hash of the images."""
    running, parts = RunningHash(held_out.reference_count), []
    with tqdm(total=held_out.reference_count, desc=f"references of {held_out.protocol}", mininterval=2) as bar:
        for images in held_out.references():
            running.update(images)
            parts.append(extract(images))
            bar.update(len(images))
    return np.concatenate(parts), running.digits()


@dataclass(frozen=True)
class PromptEmbeddings:
    """Embeddings of prompts that are made when they are asked for, to be used like a tensor (n, tokens, d)."""

    teacher: Teacher
    prompts: list[str]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: slice) -> Tensor:
        return self.teacher.embed(self.prompts[rows])


def prompt_embeddings(teacher: Teacher, references: References) -> Tensor | PromptEmbeddings:
    """The embeddings of a dataset's prompts: those that were stored, or made anew."""
    if len(references.captions):
        return torch.from_numpy(references.captions).to(teacher.device)
    return PromptEmbeddings(teacher, references.prompts)


@dataclass(frozen=True)
class Paired:
    """The teacher's images, uint8 (n, h, w, 3), that others of the same captions and noise are compared with."""

    images: np.ndarray
    features: np.ndarray


@dataclass(frozen=True)
class Measure:
    """Turns images of a dataset's prompts into a row of metrics."""

    references: References
    statistics: FeatureStatistics
    extract: Callable[[np.ndarray], np.ndarray]
    clips: dict[str, ClipScorer]

    @classmethod
    def against(
        cls, references: References, extract: Callable[[np.ndarray], np.ndarray], clips: dict[str, ClipScorer]
    ) -> Measure:
        """With the networks that the references were measured by. Raises ValueError where those were others."""
        if lacking := clips.keys() - references.clip_text.keys():
            lacks = f"the references of {references.protocol} have no {', '.join(sorted(lacking))}"
            raise ValueError(f"{lacks}: run the references stage again (dvc repro references)")
        statistics = FeatureStatistics.of(references.features)
        warn_of_few(statistics)
        return cls(references, statistics, extract, clips)

    def clip_features(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Features (n, e) of images by every CLIP score's model, by the score's column."""
        return {column: np.asarray(clip.image_features(images)) for column, clip in self.clips.items()}

    def pair(self, images: np.ndarray) -> Paired:
        """The teacher's images with their features."""
        return Paired(images, self.extract(images))

    def __call__(self, images: np.ndarray, teacher: Paired | None = None) -> Callable[[int], dict]:
        """Features once, then metrics over the first n: images uint8 (n, h, w, 3), teacher's of the same noise.

        fid_teacher is the FID to the teacher's images in place of real ones ("FID-SD" in Wang et al., 2024,
        arXiv:2405.18407): what a distillation brings nearer, whether or not the teacher's images are like real ones.
        """
        features = self.extract(images)
        image_features = self.clip_features(images)

        def row(count: int) -> dict:
            precision, recall = precision_recall(self.references.features, features[:count], self.references.radii)
            drawn = FeatureStatistics.of(features[:count])
            return {
                "images": count,
                "fid": fid(self.statistics, drawn),
                "fid_teacher": None if teacher is None else fid(FeatureStatistics.of(teacher.features[:count]), drawn),
                "kid": kid(self.references.features, features[:count], seed=0),
                "precision": precision,
                "recall": recall,
                **clip_scores(image_features, self.references.clip_text, count),
                "paired_distance": None if teacher is None else paired_distance(images[:count], teacher.images[:count]),
            }

        return row


def clip_scores(images: dict[str, np.ndarray], texts: dict[str, np.ndarray], count: int) -> dict[str, float]:
    """Every CLIP score by its column, over the first `count` of the features (n, e) of images and of texts."""
    return {column: clip_score(found[:count], texts[column][:count]) for column, found in images.items()}


def protocol(params: Params, features: str, references: References, teacher: Teacher) -> dict:
    """What a number must be quoted with."""
    return {
        "set": references.protocol,
        "fid": FID_NAMES[features],
        **clip_names(params),
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


def in_batches(
    draw: Callable[[slice, list[int]], Tensor], params: Params, count: int, label: str, size: int | None = None
) -> np.ndarray:
    """Draw `count` images in batches: draw(rows, seeds) gives uint8 (b, h, w, 3); size: pixels to resize them to."""
    seeds, step = sample_seeds(params, count), params.evaluation.batch_size
    images = None
    for start in tqdm(range(0, count, step), desc=label, mininterval=2, leave=False):
        rows = slice(start, min(start + step, count))
        batch = draw(rows, seeds[rows]).numpy()
        batch = batch if size is None else resize(batch, size)
        images = np.empty((count, *batch.shape[1:]), np.uint8) if images is None else images  # 6 GB for coco30k
        images[rows] = batch
    return images


def draw_student(
    teacher: Teacher,
    unet: nn.Module,
    captions: Tensor | PromptEmbeddings,
    resolved: ResolvedRun,
    steps: int,
    params: Params,
    label: str,
    size: int | None = None,
) -> np.ndarray:
    """Images of a published student (Eq. 19): captions (n, tokens, d) to uint8 (n, h, w, 3), at `size` if given."""
    run, scales = resolved.run, None
    if run.method == "lcm_star":
        scales = guidance_embedding(torch.full((1,), run.guidance_scale), resolved.training.condition_width)
    return draw_consistency(teacher, unet, captions, scales, steps, params, label, size)


@torch.no_grad()
def draw_consistency(
    teacher: Teacher,
    unet: nn.Module,
    captions: Tensor | PromptEmbeddings,
    guidance: Tensor | None,
    steps: int,
    params: Params,
    label: str,
    size: int | None,
) -> np.ndarray:
    """Images of a UNet as a consistency model (Eq. 19); guidance: LCM*'s embedding of w, (1, width)."""
    objective = Objective(teacher.schedule, teacher.prediction_type)

    def draw(rows: slice, seeds: list[int]) -> Tensor:
        condition = None if guidance is None else guidance.expand(len(seeds), -1).to(teacher.device)
        consistency = published_function(teacher.network(unet, captions[rows], condition), objective)
        sources = generators(seeds)
        return teacher.decode(sample_consistency(consistency, sources, teacher.latent_shape, steps, teacher.schedule))

    return in_batches(draw, params, len(captions), label, size)


@torch.no_grad()
def draw_baseline(
    teacher: Teacher,
    captions: Tensor | PromptEmbeddings,
    scheduler: str,
    guidance_scale: float,
    steps: int,
    params: Params,
    label: str,
    size: int | None = None,
) -> np.ndarray:
    """Images of the undistilled teacher by a diffusers scheduler, with classifier-free guidance, at `size` if given."""
    empty = teacher.embed([""])

    def draw(rows: slice, seeds: list[int]) -> Tensor:
        def output(z: Tensor, t: Tensor) -> Tensor:
            if guidance_scale == 1:  # no guidance: the unconditional half would count for nothing
                return teacher.network(teacher.unet, captions[rows])(z, t, torch.ones(len(z)))
            return guided_epsilon(*guided_outputs(teacher, z, t, captions[rows], empty), guidance_scale)

        made = baseline_scheduler(scheduler, teacher.scheduler_config)
        sources, shape = generators(seeds), teacher.latent_shape
        return teacher.decode(sample_scheduler(made, output, sources, shape, steps, teacher.device))

    return in_batches(draw, params, len(captions), label, size)


def open_teacher(params: Params, folder: Path) -> Teacher:
    """What the teacher stage wrote, in the profile's precision, on the GPU where there is one."""
    return load_teacher(folder, bf16=params.teacher.dtype == "bfloat16", device=default_device())


def teacher_card(params: Params, teacher: Teacher) -> dict:
    """{"protocol", "floors", "rows"}: the shipped tiny teacher's card; of another teacher, which it is.

    Raises ValueError where the card is of other weights than models/tiny has.
    """
    if params.teacher.source != "tiny":
        weights = {path.name: file_hash(path) for path in sorted((teacher.folder / "unet").glob("*.safetensors"))}
        facts = {"teacher": params.teacher.source, "unet": weights, "prediction_type": teacher.prediction_type}
        return {"protocol": facts, "floors": [], "rows": []}
    card = json.loads((TINY_MODELS / "card.json").read_text())
    if card["protocol"]["teacher"] != file_hash(TINY_MODELS / "unet" / WEIGHTS):
        raise ValueError(f"{TINY_MODELS / 'card.json'} is of another UNet: make teacher")
    return card


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
        "variant": run.variant or variant,
        "guidance_scale": run.guidance_scale,
        "skip": run.skip,
        "multiple_estimation": run.multiple_estimation,
        "seed": resolved.seed,
        "ablation": run.ablation,
    }


@dataclass(frozen=True)
class Bench:
    """All that evaluating systems of one profile needs, loaded once."""

    params: Params
    teacher: Teacher
    measures: dict[str, Measure]
    captions: dict[str, Tensor | PromptEmbeddings]
    teacher_images: Callable[[float], Paired | None]

    @classmethod
    def load(cls, params: Params, build: Path, datasets: list[str]) -> Bench:
        """From the teacher, references and teacher_samples stages under `build`."""
        teacher = open_teacher(params, build / "teacher")
        references = {d: References.load(build / "references" / f"{d}.npz") for d in datasets}
        extract, clips = load_features(params.evaluation.features, teacher.device), load_scorers(params)
        measures = {d: Measure.against(r, extract, clips) for d, r in references.items()}
        captions = {d: prompt_embeddings(teacher, r) for d, r in references.items()}

        @cache
        def teacher_images(guidance_scale: float) -> Paired | None:
            path = build / "teacher_samples" / f"w{guidance_scale:g}.npy"
            return measures["unseen"].pair(np.load(path)) if path.is_file() else None

        return cls(params, teacher, measures, captions, teacher_images)

    def protocol(self) -> dict:
        """What the numbers must be quoted with, and for each dataset its own."""
        features = self.params.evaluation.features
        facts = {d: protocol(self.params, features, m.references, self.teacher) for d, m in self.measures.items()}
        return facts["unseen"] | {"datasets": facts}

    def parted(self) -> bool:
        """Whether the first images of the unseen set are the smaller set of Table 2b, not a set of their own."""
        return "unseen-small" not in dataset_names(self.params.data)

    def size(self, dataset: str) -> int:
        """Pixels at which images are measured."""
        return self.measures[dataset].references.size

    def rows(self, facts: dict, images: np.ndarray, dataset: str, steps: int) -> Iterator[dict]:
        """The rows of one set of images; the unseen set also gives its smaller part, for Table 2b."""
        w = facts["guidance_scale"]
        teacher = self.teacher_images(w) if dataset == "unseen" else None
        row = self.measures[dataset](images, teacher)
        yield {**facts, "dataset": dataset, "steps": steps, **row(len(images))}
        small = self.params.evaluation.small_images
        if dataset == "unseen" and self.parted() and small < len(images):
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
            captions, size = bench.captions[dataset], bench.size(dataset)
            images = draw_student(bench.teacher, unet, captions, resolved, steps, params, label, size)
            rows += bench.rows(facts, images, dataset, steps)
    return rows + [snapshot_row(bench, resolved, facts, folder, i) for i in resolved.training.snapshots]


def snapshot_row(bench: Bench, resolved: ResolvedRun, facts: dict, folder: Path, iteration: int) -> dict:
    """One point of Fig. 2b: a smaller sample of the unseen set at one iteration."""
    params = bench.params
    steps, count = params.evaluation.curve_steps, params.evaluation.curve_images
    unet = load_unet(folder / "snapshots" / f"{iteration:06d}", bench.teacher.unet)
    captions = bench.captions["unseen"][:count]
    label = f"{resolved.name} iteration {iteration}"
    images = draw_student(bench.teacher, unet, captions, resolved, steps, params, label, bench.size("unseen"))
    final = iteration == resolved.training.iterations
    row = bench.measures["unseen"](images, bench.teacher_images(resolved.run.guidance_scale))(count)
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

    def draw(scheduler: str, dataset: str, steps: int) -> np.ndarray:
        label = f"{scheduler} w={guidance_scale:g} {dataset} {steps} steps"
        captions, size = bench.captions[dataset], bench.size(dataset)
        return draw_baseline(bench.teacher, captions, scheduler, guidance_scale, steps, params, label, size)

    for baseline in baselines_at(params, guidance_scale).values():
        for dataset, steps in itertools.product(baseline.datasets, baseline.steps):
            images = draw(baseline.scheduler, dataset, steps)
            rows += bench.rows({**facts, "method": SCHEDULER_NAMES[baseline.scheduler]}, images, dataset, steps)
    rows += undistilled_rows(bench, facts)
    teacher, steps = bench.teacher_images(guidance_scale), params.evaluation.teacher_steps
    if teacher is not None:
        rows += bench.rows({**facts, "method": "Teacher"}, teacher.images, "unseen", steps)
        if not bench.parted():
            images = draw("ddim", "unseen-small", steps)
            rows += bench.rows({**facts, "method": "Teacher"}, images, "unseen-small", steps)
    return rows


def undistilled_rows(bench: Bench, facts: dict) -> list[dict]:
    """The teacher's own network drawn from as if it were a student: what every student starts from, w apart.

    Multistep consistency sampling without guidance; also as iteration 0 of Fig. 2b.
    """
    params, rows, facts = bench.params, [], facts | {"method": "Undistilled"}
    captions, size, curve = bench.captions["unseen"], bench.size("unseen"), params.evaluation.curve_images
    for steps in sorted({*params.evaluation.steps, params.evaluation.curve_steps}):
        images = draw_consistency(
            bench.teacher, bench.teacher.unet, captions, None, steps, params, f"undistilled, {steps} steps", size
        )
        if steps in params.evaluation.steps:
            rows += bench.rows(facts, images, "unseen", steps)
        if steps == params.evaluation.curve_steps:
            row = bench.measures["unseen"](images[:curve], bench.teacher_images(facts["guidance_scale"]))(curve)
            rows.append({**facts, "iteration": 0, "dataset": "unseen-curve", "steps": steps, **row})
    return rows


def evaluate_pipeline(bench: Bench, key: str) -> list[dict]:
    """All rows of one of evaluation.pipelines, with the prompts and seeds of all other systems.

    It is nobody's student here: its images are not compared with the teacher's.
    """
    settings, params = bench.params.evaluation.pipelines[key], bench.params
    dtype = getattr(torch, settings.dtype)
    pipeline = open_any(settings.source, settings.scheduler, settings.lora, dtype, bench.teacher.device)
    alone = dataclasses.replace(bench, teacher_images=lambda guidance_scale: None)
    facts = {"system": f"pipeline-{key}", "run": "", "method": settings.name, "variant": ""}
    facts |= {"guidance_scale": settings.guidance_scale, "skip": None, "multiple_estimation": None, "seed": 0}
    facts |= {"iteration": None, "final": True}
    rows = []
    for dataset, steps in itertools.product(settings.datasets, settings.steps):
        prompts = bench.measures[dataset].references.prompts

        def draw(rows: slice, seeds: list[int], prompts: list[str] = prompts, steps: int = steps) -> Tensor:
            return torch.from_numpy(draw_images(pipeline, prompts[rows], seeds, steps, settings.guidance_scale))

        label = f"{settings.name} {dataset} {steps} steps"
        images = in_batches(draw, params, len(prompts), label, bench.size(dataset))
        rows += alone.rows(facts, images, dataset, steps)
    return rows


def floor_rows(bench: Bench, data: Path) -> list[dict]:
    """The floors of every dataset; those of the unseen set's smaller part too, for Table 2b."""
    params, rows = bench.params, []
    for dataset, measure in bench.measures.items():
        held_out = held_out_set(params.data, data, dataset, len(measure.references.prompts))
        small = params.evaluation.small_images if dataset == "unseen" and bench.parted() else None
        rows += dataset_floors(bench.teacher, measure, held_out, dataset, params.evaluation.batch_size, small)
    return rows


def dataset_floors(
    teacher: Teacher, measure: Measure, held_out: HeldOut, dataset: str, batch_size: int, small: int | None = None
) -> list[dict]:
    """What the metrics give for real images, for the autoencoder's reconstructions, and for wrong captions.

    Real images that are among the references have no distance to them worth stating, but a CLIP score.
    """
    real = np.concatenate(list(held_out.real(held_out.size)))
    counts = {dataset: len(real)} | ({f"{dataset}-small": small} if small and small < len(real) else {})
    facts = {"system": "floors", "run": "", "variant": "", "seed": 0, "final": True, "steps": None}
    rows = []
    for method, images in (
        ("Real images", real),
        ("VAE reconstruction", reconstructions(teacher, held_out, batch_size)),
    ):
        among = method == "Real images" and not held_out.independent
        unknown = dict.fromkeys(("fid", "kid", "precision", "recall")) if among else {}
        row = measure(images)
        rows += [{**facts, "method": method, "dataset": d, **row(n), **unknown} for d, n in counts.items()]
    # 7 is no multiple of 3: other glyph, other level
    texts = {column: np.roll(text, 7, axis=0) for column, text in measure.references.clip_text.items()}
    scores = clip_scores(measure.clip_features(real), texts, len(real))
    shuffled = {"method": "Shuffled captions", "dataset": dataset, "images": len(real)}
    return [*rows, {**facts, **shuffled, "fid": None, **scores}]


def native_size(teacher: Teacher) -> int:
    """Pixels of the teacher's own images, along each side."""
    return teacher.latent_shape[-1] * 2 ** (len(teacher.vae.config.block_out_channels) - 1)


def reconstructions(teacher: Teacher, held_out: HeldOut, batch_size: int) -> np.ndarray:
    """What the autoencoder makes, at the teacher's own size, of the prompts' real images: uint8 (n, size, size, 3)."""
    parts = []
    with tqdm(total=len(held_out.prompts), desc="autoencoder", mininterval=2, leave=False) as bar:
        for images in held_out.real(native_size(teacher)):
            for pixels in to_pixels(images).split(batch_size):
                parts.append(resize(teacher.decode(teacher.encode(pixels)).numpy(), held_out.size))
                bar.update(len(pixels))
    return np.concatenate(parts)


def job_of(params: Params, system: str, build: Path) -> tuple[set[str], Callable[[Bench], list[dict]]]:
    """The datasets that one name of matrix.systems is measured on, and the function that makes its rows."""
    if system not in params.matrix.systems:
        raise ValueError(f"system {system!r} is not in params.yaml; there are: {', '.join(params.matrix.systems)}")
    if system in params.matrix.runs:
        folder = build / "runs" / system
        return {*resolve(params, system).run.datasets}, lambda bench: evaluate_run(bench, system, folder)
    kind, _, name = system.partition("-")
    if kind == "pipeline":
        return {*params.evaluation.pipelines[name].datasets}, lambda bench: evaluate_pipeline(bench, name)
    scale = float(name.removeprefix("w"))
    used = {d for baseline in baselines_at(params, scale).values() for d in baseline.datasets}
    return used | {"unseen-small"}, lambda bench: evaluate_baselines(bench, scale)  # the teacher's own row has it


def evaluate_system(params: Params, system: str, build: Path) -> dict:
    """{"protocol": ..., "rows": [...]} of one name of matrix.systems; of a run also its "key" (splam.finished)."""
    used, rows_of = job_of(params, system, build)
    bench = Bench.load(params, build, [d for d in dataset_names(params.data) if d in used | {"unseen"}])
    key = {} if system in params.matrix.others else {"key": run_key(params, system)}
    return {**key, "protocol": bench.protocol(), "rows": rows_of(bench)}


def card_draws(card: Card) -> list[tuple[str, str, float, int]]:
    """(dataset, sampler, w, steps) of every set of images that the world's card measures, none twice."""
    most = max(card.steps)
    grid = itertools.product(["unseen"], card.samplers, card.guidance_scales, card.steps)
    curve = [("unseen", "ddim", w, most) for w in [*card.curve_scales, card.main_scale]]
    return list(dict.fromkeys([*grid, *curve, ("seen", "ddim", card.main_scale, most)]))


def world_card(params: Params, data: Path, models: Path, scratch: Path) -> tuple[dict, np.ndarray]:
    """What the tiny teacher can do, {"protocol": ..., "floors": [...], "rows": [...]}, and pictures it draws.

    Samplers on unseen combinations; DDIM in the most steps over w, and on seen combinations beside the unseen ones.
    The pictures, uint8 (params.world.card.pictures, h, w, 3), are of unseen combinations. The pipeline is put
    together in `scratch`.
    """
    card = params.world.card
    assemble_tiny(scratch / "teacher", params.world.text_tokens, models)
    teacher = load_teacher(scratch / "teacher", bf16=card.bf16)
    clips, extract = {"clip_score": load_clip(models / "clip")}, load_features(card.features)
    held_out = {d: emoji_set(data, d, card.images) for d in ("unseen", "seen")}
    references = {d: make_references(teacher, h, clips, card.features) for d, h in held_out.items()}
    measures = {d: Measure.against(r, extract, clips) for d, r in references.items()}
    rows, most = [], max(card.steps)
    for dataset, sampler, w, steps in card_draws(card):
        label, captions = f"{sampler} w={w:g} {dataset} {steps} steps", prompt_embeddings(teacher, references[dataset])
        images = draw_baseline(teacher, captions, sampler, w, steps, params, label)
        facts = {"method": SCHEDULER_NAMES[sampler], "guidance_scale": w, "steps": steps, "dataset": dataset}
        rows.append(facts | measures[dataset](images)(card.images))
        if (dataset, sampler, w, steps) == ("unseen", "ddim", card.main_scale, most):
            pictures = images[: card.pictures]
    size = params.evaluation.batch_size
    floors = [row for d, m in measures.items() for row in dataset_floors(teacher, m, held_out[d], d, size)]
    protocols = {d: protocol(params, card.features, r, teacher) for d, r in references.items()}
    facts = protocols["unseen"] | {"datasets": protocols, "teacher": file_hash(models / "unet" / WEIGHTS)}
    return {"protocol": facts, "floors": floors, "rows": rows}, pictures


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m splam.evaluate",
        description="Measure one system and print its rows, or write them as metrics/evaluate/SYSTEM.json.",
        epilog="The teacher, references and teacher-samples stages must have run, and the run's distill stage.",
    )
    parser.add_argument("system", help="a name of matrix.systems, e.g. splam-w3-k100-me-s0 or baselines-w3")
    add_source_arguments(parser)
    parser.add_argument("--build", type=Path, default=Path("build"), help="what the stages wrote (%(default)s)")
    parser.add_argument("--out", type=Path, help="a JSON file to write (standard output)")
    options = parser.parse_args(arguments)
    try:
        result = evaluate_system(params_of(options), options.system, options.build)
    except (ParamsError, FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    text = json.dumps(result, indent=1)
    if options.out is None:
        print(text)
        return 0
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
