"""Every parameter of the pipeline, typed and strict: an unknown key or a wrong type is an error that names it.

conf/profile/NAME.yaml (with what it `extends`) is composed into params.yaml by `python -m splam.params NAME`;
stages read params.yaml alone.
"""

from __future__ import annotations

import argparse
import difflib
import glob
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from splam import finished
from splam.inventory import NOTHING, take_stock

CONF = Path("conf/profile")
LATENTS, NO_LATENTS = "build/latents.json", "splam/assets/no_latents.json"  # DVC knows no dependency that may be absent


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Recipe(Strict):
    """How one model of the tiny world is trained (splam.world)."""

    channels: list[PositiveInt]
    iterations: PositiveInt
    batch_size: PositiveInt
    optimizer: Literal["adamw", "muon"]
    learning_rate: PositiveFloat
    warmup: PositiveInt
    weight_decay: float
    gradient_norm: PositiveFloat
    ema_decay: float = Field(ge=0, lt=1)
    bf16: bool
    seed: int
    checkpoint_seconds: PositiveFloat
    empty_captions: float = Field(0.0, ge=0, le=1)


class Card(Strict):
    """What is measured of the shipped tiny teacher (splam.evaluate.world_card)."""

    features: Literal["efficientnet_lite0", "inception"]
    images: PositiveInt
    samplers: list[Literal["ddim", "dpmsolver", "dpmsolver++", "unipc"]]
    guidance_scales: list[float] = Field(description="w of every sampler at every number of steps")
    steps: list[PositiveInt] = Field(min_length=1)
    curve_scales: list[float] = Field(description="w at which DDIM in the most steps is measured too")
    main_scale: float = Field(description="w at which seen combinations are drawn too, and the pictures")
    pictures: PositiveInt = Field(description="images to be shown, the first ones of the unseen combinations")
    bf16: bool


class World(Strict):
    """The recipes of the shipped tiny models, and what is measured of them."""

    latent_channels: PositiveInt
    text_tokens: PositiveInt
    vae: Recipe
    unet: Recipe
    clip: Recipe
    card: Card

    def clip_config(self) -> dict[str, Any]:
        """open_clip's configuration of the tiny CLIP model; channels are [vision width, text width]."""
        vision, text = self.clip.channels
        return {
            "embed_dim": text,
            "vision_cfg": {"image_size": 32, "patch_size": 8, "width": vision, "layers": 4, "head_width": 32},
            "text_cfg": {
                "context_length": self.text_tokens,
                "vocab_size": 49408,
                "width": text,
                "heads": 4,
                "layers": 3,
            },
        }


class Teacher(Strict):
    """What is distilled: "tiny" (the shipped models) or a diffusers Stable Diffusion (1, 2 or XL) pipeline.

    The weights are float32; dtype is what its UNet's calls are autocast to. The prediction type and the betas are read
    from its scheduler.
    """

    source: str = Field(min_length=1, description='"tiny", a hub id, or a local folder with model_index.json')
    dtype: Literal["float32", "bfloat16"] = "float32"
    licence: str | None = Field(None, description="of its weights, for the cards of the students made from it")


class EmojiData(Strict):
    """The text-to-emoji set (splam.data.emoji)."""

    kind: Literal["emoji"]
    train_draws: PositiveInt
    test_draws: int = Field(ge=1, le=9)
    every: PositiveInt = Field(1, description="use one glyph in `every`")


class CocoData(Strict):
    """COCO's validation sets: what the unseen images of the tables at Stable Diffusion's size are (splam.data.coco)."""

    folder: str = Field(description="holds annotations/, val2014/ and val2017/ as cocodataset.org packs them")
    captions_30k: str | None = Field(None, description="a caption list for coco30k; without one, a seeded draw")
    captions_5k: str | None = Field(None, description="the same for coco5k")
    seed: int = Field(0, description="of the draw of one caption an image")
    image_size: PositiveInt = Field(256, description="pixels at which images are measured; 256 is the protocol's")


class LaionData(Strict):
    """Captioned images in webdataset shards, to train on and for a test split of our own (splam.data.laion)."""

    kind: Literal["laion"]
    shards: list[str] = Field(min_length=1, description="paths, globs, brace patterns, URLs or pipe: commands")
    resolution: PositiveInt = Field(description="pixels of the square images that are trained on")
    crop: Literal["center", "random"] = "center"
    workers: int = Field(4, ge=0, description="reading processes of each rank; 0 reads in the training process")
    shuffle_buffer: PositiveInt = Field(1000, description="encoded samples that each worker holds to draw from")
    max_broken_share: float = Field(0.01, ge=0, le=1, description="of broken images, missing captions, cut shards")
    held_out_share: float = Field(0.01, gt=0, lt=1, description="of the samples, by hash of their keys")
    test_images: PositiveInt = Field(description="captions drawn from the test split; as many more are references")
    coco: CocoData


Data = Annotated[EmojiData | LaionData, Field(discriminator="kind")]


class Trajectories(Strict):
    """Teacher trajectories, computed once for each guidance scale and shared by all runs."""

    guidance_scales: list[float]
    draws: PositiveInt = Field(description="(image, caption, t, noise) draws in the cache")
    steps: PositiveInt = Field(description="guided DDIM steps of k_phi along each draw")
    solver_skip: PositiveInt = Field(20, description="k_phi")
    second_order: list[float] = Field([], description="those w whose draws are also solved by DPM-Solver++ 2M")
    batch_size: PositiveInt
    empty_captions: float = Field(ge=0, le=1, description="share of captions replaced by the empty one")


class Latents(Strict):
    """Latents and caption embeddings that are encoded once, for the runs with training.source = latents."""

    images: PositiveInt = Field(description="to encode, in the order of a training, up to whole batches")
    batch_size: PositiveInt = Field(description="images that are encoded at a time")
    batches_per_file: PositiveInt = 64
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"

    @property
    def batches(self) -> int:
        """Batches that hold `images`."""
        return math.ceil(self.images / self.batch_size)


RECIPES = ("gamma_law", "gammas_per_path", "target_gap", "loss_weight", "solver_order", "skip_law")
"""Keys of `training` that lead beyond the paper, whose own choice is each one's default."""


class Training(Strict):
    """Hyperparameters of a distillation that methods in one comparison share (method.md, Alg. 1)."""

    iterations: PositiveInt = Field(description="optimizer steps")
    batch_size: PositiveInt = Field(description="of one forward pass of one process")
    accumulation: PositiveInt = Field(1, description="forward passes of each process that make one optimizer step")
    learning_rate: PositiveFloat
    warmup: int = Field(ge=0, description="iterations of linear warm-up")
    schedule: Literal["constant", "linear"] = Field("constant", description="after the warm-up; linear ends at 0")
    weight_decay: float = Field(ge=0)
    gradient_norm: PositiveFloat
    ema_decay: float = Field(ge=0, lt=1, description="mu")
    loss: Literal["l2", "huber", "pseudo_huber"]
    huber_c: PositiveFloat = 1e-3
    bf16: bool = Field(description="autocast the networks' calls; weights, schedule and averages stay float32")
    processes: PositiveInt = 1
    sharding: Literal["none", "fsdp"] = Field("none", description="fsdp spreads the networks over the processes")
    gradient_checkpointing: bool = False
    compile: bool = Field(False, description="torch.compile of the student's, the target's and the teacher's UNet")
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    source: Literal["cached", "online", "latents"] = Field(
        "cached", description="sub-paths from the trajectory cache, from images, or from latents computed once"
    )
    latents: Literal["mean", "sample"] = Field(
        "sample", description="of E(x), drawn anew online and once by the latents stage; LCM's scripts take a sample"
    )
    checkpoint_seconds: PositiveFloat
    keep_checkpoints: PositiveInt = 2
    short_ends: Literal["clamped", "strict"] = "clamped"
    sigma_form: Literal["linear", "markov"] = "linear"
    condition_width: PositiveInt = Field(64, description="width of the time_cond_proj input: e(gamma), or w for LCM*")
    gamma_max_frequency: PositiveFloat = Field(10.0, description="radians over gamma in [0, 1]")
    gamma_one_probability: float = Field(0.0, ge=0, le=1)
    gamma_law: tuple[PositiveFloat, PositiveFloat] = Field(
        (1.0, 1.0), description="gamma ~ Beta(a, b); a = b = 1, uniform, is the paper's"
    )
    gammas_per_path: PositiveInt = Field(1, description="m: points of each sub-path; its ends are computed once")
    target_gap: float = Field(1.0, gt=0, le=1, description="in gamma; 1 is the paper's, the end of the path")
    loss_weight: Literal["none", "min_snr"] = Field("none", description="of each t (splam.loss.snr_weight)")
    solver_order: Literal[1, 2] = Field(1, description="of multiple estimation: DDIM, the paper's, or DPM-Solver++ 2M")
    skip_law: Literal["fixed", "random", "annealed"] = Field(
        "fixed", description="k of an iteration: the run's, or one of the multiples of k_phi up to it"
    )
    lora_rank: PositiveInt = 16
    lora_learning_rate: PositiveFloat = 1e-3
    lcm_star_scales: tuple[float, float] = (2.0, 14.0)
    snapshots: list[PositiveInt] = Field([], description="iterations whose target network is kept for Fig. 2b")

    @property
    def global_batch(self) -> int:
        """Samples of one optimizer step, over all processes that `processes` counts."""
        return self.batch_size * self.accumulation * self.processes


Dataset = Literal["unseen", "unseen-small", "seen"]


class Run(Strict):
    """One distillation: what sets it apart from the others."""

    method: Literal["lcm", "lcm_star", "lcm_lora", "splam"]
    guidance_scale: float = Field(gt=0, description="w; the one that lcm_star is sampled with")
    skip: PositiveInt = Field(description="k")
    multiple_estimation: bool
    input_scaling: Literal["raw", "unit_variance"] = "raw"
    gamma_conditioning: Literal["embedding", "equal_snr_time"] = "embedding"
    seeds: list[int] = [0]
    datasets: list[Dataset] = ["unseen"]
    training: dict[str, Any] = Field({}, description="overrides of the training section")
    variant: str = Field("", description="a recipe's name in tables and claims, where splam has one beyond the paper's")
    ablation: bool = Field(False, description="made for `ablations` alone: claims, tables and figures leave it out")


# Of a Run, what its student does not follow from; training is resolved on its own.
NOT_TRAINED = frozenset({"seeds", "datasets", "training", "variant", "ablation"})


class Study(Strict):
    """Runs that are compared, paired by seed, with a reference from which each differs in one factor."""

    reference: str
    runs: list[str] = []
    recipes: list[str] = Field([], description="runs that may differ from it in several factors")


class Baseline(Strict):
    """A diffusers scheduler on the undistilled teacher."""

    scheduler: Literal["ddim", "dpmsolver", "dpmsolver++", "unipc"]
    steps: list[PositiveInt]
    guidance_scales: list[float]
    datasets: list[Dataset] = ["unseen"]


class Gate(Strict):
    """What the undistilled teacher must give before a student's number is believed (splam.gate)."""

    fid: PositiveFloat = Field(description="expected Inception FID")
    tolerance: PositiveFloat = Field(description="how far off it may be, up or down")
    guidance_scale: float = Field(description="w")
    steps: PositiveInt = 50
    images: PositiveInt
    sets: list[str] = Field(min_length=1, description="names of the test sets that the expected value is of")


class Pipeline(Strict):
    """A text-to-image pipeline of others' making, measured as the students are: a row of Table 2."""

    name: str = Field(min_length=1, description="of its row; where Table 2 has it, the paper's number stands beside it")
    source: str = Field(min_length=1, description="a hub id, or a local folder with model_index.json")
    lora: str | None = Field(None, description="an adapter to load: a hub id, a folder or a file")
    scheduler: str | None = Field(None, description="a class of diffusers, such as LCMScheduler; else its own")
    steps: list[PositiveInt]
    guidance_scale: float = Field(ge=0, description="as the pipeline's own call takes it")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    datasets: list[Dataset] = ["unseen"]


PipelineKey = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


class Evaluation(Strict):
    """Protocol of the tables."""

    features: Literal["efficientnet_lite0", "inception"]
    clip: str = Field("models/tiny/clip", description='of the CLIP score: a folder, or "architecture/weights"')
    clip_beside: str = Field("", description="a second model, whose score stands beside the first's; empty for none")
    clip_prefix: str = Field("", description='put before every caption, such as "A photo depicts "')
    gate: Gate | None = Field(None, description="without one, no number of the teacher's is expected")
    images: PositiveInt = Field(description="samples of Tables 1, 2a and 2c")
    small_images: PositiveInt = Field(description="samples of Table 2b, the first ones of the larger set")
    curve_images: PositiveInt = Field(description="samples at each snapshot of Fig. 2b")
    curve_steps: PositiveInt
    steps: list[PositiveInt]
    batch_size: PositiveInt
    baselines: dict[str, Baseline]
    pipelines: dict[PipelineKey, Pipeline] = {}
    teacher_steps: PositiveInt


class Delta(Strict):
    """delta(t, k) of Fig. 2c."""

    runs: list[str]
    images: PositiveInt
    skip: PositiveInt
    first_time: PositiveInt
    batch_size: PositiveInt


class Latency(Strict):
    """Seconds from caption to image."""

    run: str
    lora: str
    steps: list[PositiveInt]
    repeats: PositiveInt
    batch_size: PositiveInt


class Pictures(Strict):
    """Which runs and captions the sample figures show."""

    prompts: list[str]
    guidance_runs: list[str] = Field(description="Fig. 3: one run for each w")
    lcm: str = Field(description="Fig. 4, left")
    splam: str = Field(description="Fig. 4, right")
    gallery: list[str] = Field(description="Fig. 5: runs beside the baselines and the teacher")
    gallery_baselines: list[str]


class Matrix(Strict):
    """What dvc.yaml's matrices run over; derived, never written by hand."""

    scales: list[str]
    runs: list[str] = Field(description="distillations to be made: all, or those that reuse_metrics leaves")
    latents: list[str] = Field(description="the data's kind where a run has training.source = latents, else nothing")
    others: list[str] = Field(description="systems that are no runs: the teacher at each w, and other pipelines")
    systems: list[str]


class System(Strict):
    """What one distilled run depends on, so that a change of another run leaves it alone; derived like Matrix."""

    distill: dict[str, Any] = Field(description="its seed, run and training parameters")
    datasets: list[str]
    variant: str
    ablation: bool


class Inputs(Strict):
    """Files that distill reads in some profiles alone; derived like Matrix."""

    latents: str = Field(NO_LATENTS, description="what the latents stage writes, or a file that says there is nothing")


class Inventory(Strict):
    """What there is of a profile's files outside the repository (splam.inventory); derived like Matrix."""

    data: str = NOTHING
    teacher: str = NOTHING


class Params(Strict):
    """The whole of params.yaml."""

    profile: str
    description: str = ""
    expected_minutes: float | None = Field(None, gt=0, description="of `make repro` from nothing, on two cores")
    reuse_metrics: bool = Field(False, description="leave out runs whose metrics are there (splam.finished)")
    seed: int
    world: World
    teacher: Teacher
    data: Data
    trajectories: Trajectories
    latents: Latents | None = None
    training: Training
    runs: dict[str, Run]
    ablations: dict[str, Study] = {}
    evaluation: Evaluation
    delta: Delta
    latency: Latency
    pictures: Pictures
    matrix: Matrix
    systems: dict[str, System]
    inputs: Inputs = Inputs()
    inventory: Inventory = Inventory()

    @model_validator(mode="after")
    def _agree(self) -> Params:
        """Parts that are each valid but do not go together are errors that name them."""
        errors = [line for name in self.runs for line in _run_errors(self, name)] + _reference_errors(self)
        errors += _dataset_errors(self)
        if self.data.kind == "emoji" and self.evaluation.small_images > self.evaluation.images:
            errors.append(
                f"evaluation.small_images = {self.evaluation.small_images} are drawn from the first "
                f"evaluation.images = {self.evaluation.images}: there are fewer"
            )
        if errors := errors or _ablation_errors(self):
            raise ValueError("\n".join(errors))
        return self


class ParamsError(ValueError):
    """Parameters that are not valid; the message has a line for each, with its key, its value and what is allowed."""


@dataclass(frozen=True)
class ResolvedRun:
    """One distillation with one seed: `name` is "<run_name>-s<seed>", `training` has the run's overrides applied."""

    name: str
    run_name: str
    seed: int
    run: Run
    training: Training


def resolve(params: Params, name: str) -> ResolvedRun:
    """The run of params.yaml that `name`, one of run_names, stands for."""
    for run_name, run in params.runs.items():
        for seed in run.seeds:
            if name == f"{run_name}-s{seed}":
                return ResolvedRun(name, run_name, seed, run, _overridden(params.training, run))
    raise ParamsError(f"there is no run {name!r}; there are: {', '.join(run_names(params))}")


def differences(params: Params, run: str, reference: str) -> dict[str, tuple[Any, Any]]:
    """The factors in which a run differs from another: {key: (its value, the other's)}, keys of Run and Training.

    Seeds, datasets, snapshots and checkpoints leave a student as it is and do not count.
    """

    def facts(name: str) -> dict[str, Any]:
        settings = params.runs[name]
        training = _overridden(params.training, settings)
        own = settings.model_dump(exclude=NOT_TRAINED)
        return own | training.model_dump(exclude={"snapshots", "checkpoint_seconds", "keep_checkpoints"})

    ours, theirs = facts(run), facts(reference)
    return {key: (ours[key], theirs[key]) for key in ours if ours[key] != theirs[key]}


def load_params(path: str | Path = "params.yaml") -> Params:
    """The parameters that a stage reads. Raises ParamsError, naming every key that is not as it should be."""
    if not Path(path).is_file():
        raise ParamsError(f"there is no {path}; compose it by `python -m splam.params PROFILE`")
    return _validate(yaml.safe_load(Path(path).read_text()), str(path))


def compose(name: str, conf: Path = CONF, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Profile `name` with what it `extends`, `a.b=c` overrides and the derived sections, as params.yaml holds it.

    Dicts merge (but for one of another `kind`, which replaces), lists replace, and a key set to null is taken out.
    Raises ParamsError.
    """
    content = _extended(name, conf)
    for override in overrides:
        content = _merge(content, _override(override))
    if derived := {"profile", "matrix", "systems", "inputs", "inventory"} & content.keys():
        raise ParamsError(f"profile {name}: {', '.join(sorted(derived))}: derived, not to be set")
    content |= {"profile": name, "matrix": dict.fromkeys(Matrix.model_fields, []), "systems": {}}
    params = _validate(content, f"profile {name}")
    content |= {"matrix": _matrix(params), "systems": _systems(params), "inventory": _inventory(params)}
    content |= {"inputs": {"latents": LATENTS if content["matrix"]["latents"] else NO_LATENTS}}
    params = _validate(content, f"profile {name}")
    composed = _dumped(params)
    if params.reuse_metrics:
        kept = _runs_that_are_opened(params)
        left = [run for run in params.matrix.runs if run in kept or not finished.is_finished(composed, run)]
        composed["matrix"]["runs"] = left
    return composed


def _dumped(params: Params) -> dict[str, Any]:
    return params.model_dump(mode="json", exclude_none=True)


def run_key(params: Params, run: str) -> str:
    """What a run's numbers follow from, in 16 digits (splam.finished.run_key)."""
    return finished.run_key(_dumped(params), run)


def run_names(params: Params) -> list[str]:
    """All distillations, "<run>-s<seed>"."""
    return [f"{name}-s{seed}" for name, run in params.runs.items() for seed in run.seeds]


def _runs_that_are_opened(params: Params) -> set[str]:
    """Distillations whose weights the stages sample, delta and latency read."""
    pictures = params.pictures
    first = [*pictures.guidance_runs, pictures.lcm, pictures.splam, *pictures.gallery]
    first += [params.latency.run, params.latency.lora]
    opened = {f"{name}-s{params.runs[name].seeds[0]}" for name in first}
    return opened | {f"{name}-s{seed}" for name in params.delta.runs for seed in params.runs[name].seeds}


def _extended(name: str, conf: Path, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """Content of conf/NAME.yaml merged over what it extends."""
    if name in seen:
        raise ParamsError(f"profiles extend each other: {' -> '.join([*seen, name])}")
    path = conf / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in conf.glob("*.yaml")))
        raise ParamsError(f"there is no profile {name!r} in {conf}; there are: {known or 'none'}")
    content = yaml.safe_load(path.read_text()) or {}
    if not isinstance(content, dict):
        raise ParamsError(f"{path}: not a mapping of keys to values")
    parent = content.pop("extends", None)
    return _merge(_extended(parent, conf, (*seen, name)) if parent else {}, content)


def _override(text: str) -> dict[str, Any]:
    """`a.b=c` as {"a": {"b": c}}, c read as YAML."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ParamsError(f"override {text!r} is not key=value")
    content = yaml.safe_load(value)
    for part in reversed(key.split(".")):
        content = {part: content}
    return content


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            old = merged[key] if isinstance(merged.get(key), dict) else {}
            other = value.get("kind", old.get("kind")) != old.get("kind")  # another kind of data has other keys
            merged[key] = _merge({} if other else old, value)
        else:
            merged[key] = value
    return merged


def _matrix(params: Params) -> dict[str, list[str]]:
    runs = run_names(params)
    scales = {f"{w:g}": None for b in params.evaluation.baselines.values() for w in b.guidance_scales}
    others = [*(f"baselines-w{w}" for w in scales), *(f"pipeline-{key}" for key in params.evaluation.pipelines)]
    return {
        "scales": [f"{w:g}" for w in params.trajectories.guidance_scales],
        "latents": [params.data.kind] if reads_latents(params) else [],
        "runs": runs,
        "others": others,
        "systems": [*runs, *others],
    }


def reads_latents(params: Params) -> bool:
    """Whether a run of the profile trains on latents that are encoded once."""
    return any(_overridden(params.training, run).source == "latents" for run in params.runs.values())


def _inventory(params: Params) -> dict[str, str]:
    teacher = take_stock([f"{glob.escape(params.teacher.source)}/**"])
    if params.data.kind == "emoji":
        return {"teacher": teacher}
    coco = params.data.coco
    parts = [f"{coco.folder}/annotations/*.json", f"{coco.folder}/val2014", f"{coco.folder}/val2017"]
    lists = [name for name in (coco.captions_30k, coco.captions_5k) if name]
    return {"teacher": teacher, "data": take_stock([*params.data.shards, *parts, *lists])}


def _systems(params: Params) -> dict[str, dict[str, Any]]:
    systems = {}
    for name in run_names(params):
        resolved = resolve(params, name)
        distill = {
            "seed": resolved.seed,
            "run": resolved.run.model_dump(mode="json", exclude=NOT_TRAINED),
            "training": resolved.training.model_dump(mode="json", exclude={"checkpoint_seconds", "keep_checkpoints"}),
        }
        systems[name] = {
            "distill": distill,
            **{key: getattr(resolved.run, key) for key in ("datasets", "variant", "ablation")},
        }
    return systems


def _overridden(training: Training, run: Run) -> Training:
    return Training.model_validate({**training.model_dump(), **run.training})


def _run_errors(params: Params, name: str) -> list[str]:
    """What is wrong with one run beside the other sections, a line each."""
    run, cache = params.runs[name], params.trajectories
    try:
        training = _overridden(params.training, run)
    except ValidationError as error:
        return _lines(error, Training, f"runs.{name}.training.")
    errors = [
        f"runs.{name}: snapshot {i} is after the last iteration, {training.iterations}"
        for i in training.snapshots
        if i > training.iterations
    ]
    errors += _scale_errors(f"runs.{name}", run, training) + _recipe_errors(f"runs.{name}", run, training, cache)
    errors += _latents_errors(f"runs.{name}", params, training)
    if run.variant and run.method != "splam":
        errors.append(f"runs.{name}.variant: {run.variant!r} names a recipe of splam, and the method is {run.method}")
    steps = run.skip / cache.solver_skip
    if not run.multiple_estimation or steps == 1:
        return errors
    if steps != int(steps):
        errors.append(
            f"runs.{name}.skip = {run.skip}: with multiple_estimation it must be a multiple of "
            f"trajectories.solver_skip = {cache.solver_skip}"
        )
    if training.source != "cached":
        return errors
    if steps == int(steps) and steps > cache.steps:
        errors.append(
            f"runs.{name}.skip = {run.skip} takes {steps:g} solver steps of {cache.solver_skip}: "
            f"trajectories.steps = {cache.steps} is too few"
        )
    if run.guidance_scale not in cache.guidance_scales:
        errors.append(
            f"runs.{name}.guidance_scale = {run.guidance_scale:g}: with multiple_estimation over several solver steps "
            f"it must be one of trajectories.guidance_scales = {[*map('{:g}'.format, cache.guidance_scales)]}"
        )
    return errors


def _latents_errors(key: str, params: Params, training: Training) -> list[str]:
    """What a run on latents that are encoded once lacks, a line each."""
    if training.source != "latents":
        return []
    if params.latents is None:
        lacking = "but there is no section latents: set latents.images and latents.batch_size"
        return [f"{key}: training.source = latents, {lacking}"]
    if training.latents != params.training.latents:
        wanted = f"training.latents = {params.training.latents} of the whole profile"
        return [f"{key}: training.latents = {training.latents}: the latents stage encodes once, with {wanted}"]
    return []


def _scale_errors(key: str, run: Run, training: Training) -> list[str]:
    """Choices of how a run is spread over processes and memory that do not go together, a line each."""
    errors = []
    if run.method == "splam" and training.condition_width % 2:
        errors.append(f"{key}: training.condition_width = {training.condition_width} must be even (sines and cosines)")
    if training.sharding != "fsdp":
        return errors
    if run.method == "lcm_lora":
        errors.append(f"{key}: training.sharding = fsdp is not for method lcm_lora, whose adapter is small: set none")
    if training.optimizer == "adamw_8bit":
        errors.append(f"{key}: training.optimizer = adamw_8bit keeps no sharded state: set adamw, or sharding = none")
    if training.processes == 1:
        errors.append(f"{key}: training.sharding = fsdp needs training.processes of 2 or more, there is 1")
    return errors


def _recipe_errors(key: str, run: Run, training: Training, cache: Trajectories) -> list[str]:
    """Recipes beyond the paper that do not go with the run, a line each."""
    errors, steps, w = [], run.skip / cache.solver_skip, run.guidance_scale
    for name in ("gamma_law", "gammas_per_path", "target_gap"):
        value = getattr(training, name)
        if run.method != "splam" and value != Training.model_fields[name].default:
            errors.append(f"{key}: training.{name} = {value} is for method splam, {run.method}'s gamma is always 1")
    several = steps >= 2 and steps == int(steps)
    if training.skip_law != "fixed" and not several:
        errors.append(
            f"{key}: training.skip_law = {training.skip_law} needs a skip of 2 or more whole steps of "
            f"trajectories.solver_skip = {cache.solver_skip}, it is {run.skip}"
        )
    if training.solver_order == 2 and not (several and run.multiple_estimation):
        errors.append(f"{key}: training.solver_order = 2 needs multiple_estimation over 2 or more solver steps")
    if training.solver_order == 2 and training.source == "cached" and w not in cache.second_order:
        errors.append(f"{key}: training.solver_order = 2 needs its guidance_scale {w:g} in trajectories.second_order")
    return errors


def _reference_errors(params: Params) -> list[str]:
    """Names of runs and baselines that do not exist, a line each."""
    pictures = params.pictures
    runs = {
        "delta.runs": params.delta.runs,
        "latency.run": [params.latency.run],
        "latency.lora": [params.latency.lora],
        "pictures.guidance_runs": pictures.guidance_runs,
        "pictures.lcm": [pictures.lcm],
        "pictures.splam": [pictures.splam],
        "pictures.gallery": pictures.gallery,
    }
    errors = [line for key, names in runs.items() for line in _unknown(key, names, "run", params.runs)]
    cache = params.trajectories
    errors += [
        f"trajectories.second_order: {w:g} is not one of trajectories.guidance_scales"
        for w in cache.second_order
        if w not in cache.guidance_scales
    ]
    baselines = params.evaluation.baselines
    names = [(name, steps) for p in params.evaluation.pipelines.values() for name in [p.name] for steps in p.steps]
    twice = sorted({row for row in names if names.count(row) > 1})
    errors += [f"evaluation.pipelines: {name!r} in {steps} steps names two rows" for name, steps in twice]
    return errors + _unknown("pictures.gallery_baselines", pictures.gallery_baselines, "baseline", baselines)


def _ablation_errors(params: Params) -> list[str]:
    """Studies whose runs cannot be told from their reference by one factor and shared seeds, a line each."""
    errors, used = [], set()
    for name, study in params.ablations.items():
        runs = [study.reference, *study.runs, *study.recipes]
        used.update(runs)
        unknown = _unknown(f"ablations.{name}", runs, "run", params.runs)
        errors += unknown or [line for run in runs[1:] for line in _comparison_errors(params, name, run)]
    marked = [run for run, settings in params.runs.items() if settings.ablation]
    errors += [f"runs.{run}.ablation: no study of `ablations` names the run" for run in marked if run not in used]
    lost = [run for run in params.delta.runs if run in marked]
    return errors + [f"delta.runs: {run} is an ablation, which figures leave out: take it out of one" for run in lost]


def _comparison_errors(params: Params, study: str, run: str) -> list[str]:
    """What keeps one run of a study from being compared with its reference, a line each."""
    settings, key = params.ablations[study], f"ablations.{study}: {run}"
    reference, errors = settings.reference, []
    factors = differences(params, run, reference)
    if not factors:
        errors.append(f"{key} does not differ from {reference}")
    if len(factors) > 1 and run not in settings.recipes:
        errors.append(
            f"{key} differs from {reference} in {', '.join(factors)}: leave one, or name the run under recipes"
        )
    if alone := sorted({*params.runs[run].seeds} - {*params.runs[reference].seeds}):
        errors.append(f"{key} has the seeds {alone}, which {reference} lacks: pairs need the same seeds")
    both = [name for name in (run, reference) if "unseen" not in params.runs[name].datasets]
    return errors + [f"{key}: {name}.datasets lacks 'unseen', on which it is compared" for name in both]


def _dataset_errors(params: Params) -> list[str]:
    """Where the small set is a part of the unseen one, it cannot be asked for; a line each."""
    if params.data.kind != "emoji":
        return []
    asked = {f"runs.{name}": run.datasets for name, run in params.runs.items()}
    asked |= {f"evaluation.baselines.{name}": b.datasets for name, b in params.evaluation.baselines.items()}
    asked |= {f"evaluation.pipelines.{name}": p.datasets for name, p in params.evaluation.pipelines.items()}
    return [
        f"{key}.datasets: 'unseen-small' is measured wherever 'unseen' is: take it out"
        for key, datasets in asked.items()
        if "unseen-small" in datasets
    ]


def _unknown(key: str, names: list[str], what: str, known: dict[str, Any]) -> list[str]:
    return [f"{key}: there is no {what} {name!r}{_suggestion(name, known)}" for name in names if name not in known]


def _suggestion(name: str, known: Sequence[str] | dict[str, Any]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(known)}"


def _validate(content: Any, source: str) -> Params:
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        raise ParamsError("\n".join([f"{source}:", *_lines(error, Params)])) from None


def _lines(error: ValidationError, root: type[BaseModel], prefix: str = "") -> list[str]:
    """One line for each of pydantic's errors: key, value, what is allowed."""
    lines = []
    for detail in error.errors():
        *parents, last = detail["loc"] or ("",)
        shown = (
            detail["loc"][:1] + detail["loc"][2:] if detail["loc"][:1] == ("data",) else detail["loc"]
        )  # not its kind
        key = prefix + ".".join(map(str, shown))
        if detail["type"] == "extra_forbidden":
            lines.append(f"{key} = {detail['input']!r}: unknown key{_suggestion(str(last), _fields(root, parents))}")
        elif detail["type"] == "missing":
            lines.append(f"{key}: missing")
        elif not detail["loc"]:  # our own cross checks, which name the keys themselves
            lines.append(str(detail["ctx"]["error"]))
        else:
            lines.append(f"{key} = {detail['input']!r}: {detail['msg']}")
    return lines


def _fields(root: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """Names of the keys that are known at a place below a model."""
    kinds: list[Any] = [root]
    for part in location:
        models = [kind.model_fields[part].annotation for kind in kinds if _is_model(kind) and part in kind.model_fields]
        entries = [entry for kind in kinds if not _is_model(kind) for entry in get_args(kind)]
        kinds = models + [entry for entry in entries if not _is_model(entry) or part in _tags(entry, part)]
    return [name for kind in kinds if _is_model(kind) for name in kind.model_fields]


def _tags(model: type[BaseModel], part: str | int) -> tuple[Any, ...]:
    """What a place in a union of models is called: the model's `kind`; models without one are at any place."""
    return get_args(model.model_fields["kind"].annotation) if "kind" in model.model_fields else (part,)


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def write_params(name: str, conf: Path = CONF, overrides: Sequence[str] = (), out: Path = Path("params.yaml")) -> bool:
    """Compose a profile into params.yaml; returns whether that changed the file. Raises ParamsError."""
    head = f"# Composed from conf/profile/{name}.yaml by `python -m splam.params {name}`; not to be edited by hand.\n"
    text = head + yaml.safe_dump(compose(name, conf, overrides), sort_keys=False, default_flow_style=None, width=120)
    if out.is_file() and out.read_text() == text:
        return False
    out.write_text(text)
    return True


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """--params FILE, or --profile NAME with --set a.b=c: where a command line takes its parameters from."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--params", type=Path, default=Path("params.yaml"), help="a composed profile (%(default)s)")
    source.add_argument("--profile", help="compose this profile of conf/profile instead; no file is written")
    parser.add_argument("--set", nargs="+", default=[], metavar="a.b=c", help="overrides of the profile's keys")


def params_of(options: argparse.Namespace) -> Params:
    """The parameters that add_source_arguments' options name. Raises ParamsError."""
    if options.profile:
        return Params.model_validate(compose(options.profile, overrides=options.set))
    if options.set:
        raise ParamsError("--set overrides keys of a profile: name one by --profile")
    return load_params(options.params)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m splam.params", description="Compose a profile into params.yaml.")
    parser.add_argument("profile", help="a name in conf/profile")
    parser.add_argument("--set", nargs="+", default=[], metavar="a.b=c", help="overrides")
    options = parser.parse_args(arguments)
    try:
        changed = write_params(options.profile, overrides=options.set)
    except ParamsError as error:
        print(error, file=sys.stderr)
        return 1
    params = load_params()
    time = f"; about {params.expected_minutes:g} minutes from nothing" if params.expected_minutes else ""
    print(f"Profile {params.profile}: {params.description}{time}.")
    left, everything = len(params.matrix.runs), len(run_names(params))
    print(f"{left} distillations and evaluations, and {len(params.matrix.others)} evaluations of other systems.")
    if left < everything:
        print(f"{everything - left} more are measured already, from the same code, weights and parameters.")
    print("params.yaml " + ("written." if changed else "is as it was."))
    if strays := stray_metrics(params):
        print(
            f"Measured, but in {params.profile} no longer; the report would mix them in. Delete them:", file=sys.stderr
        )
        print(f"rm {' '.join(map(str, strays))}", file=sys.stderr)
        return 1
    return 0


def stray_metrics(params: Params) -> list[Path]:
    """Metrics files in a profile's report of runs and systems that the profile does not have (any more)."""
    folder, known = Path("reports") / params.profile / "metrics", {*run_names(params), *params.matrix.systems}
    files = [*folder.glob("distill/*.json"), *folder.glob("evaluate/*.json")]
    return sorted(file for file in files if file.stem not in known)


if __name__ == "__main__":
    sys.exit(main())
