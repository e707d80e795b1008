"""Every parameter, typed and strict: unknown keys, wrong types and parts that do not fit are errors that name them."""

import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

ROOT = Path(__file__).resolve().parents[1]
PARAMS = ROOT / "params.yaml"
Dataset = Literal["unseen", "unseen-small", "seen"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]  # of a stage, a file and a folder
Text = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Scale = Annotated[float, Field(ge=1)]  # w, as diffusers guides: 1 is no guidance


class ParamsError(ValueError):
    """Parameters that are not valid; the message has a line for each, with its key and its value."""


class Strict(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """A section of params.yaml."""

    @model_validator(mode="before")
    @classmethod
    def _known(cls, content: Any) -> Any:
        for key, value in content.items() if isinstance(content, dict) else ():
            if key not in cls.model_fields:
                raise ValueError(f"unknown key {key!r}{suggestion(key, cls.model_fields)}")
            if isinstance(value, str | list) and ("'~/" in repr(value) or "'file:" in repr(value)):
                raise ValueError(f"{key}: neither ~ nor file: is read, here or by DVC: write the path out")
        return content


class TeacherSettings(Strict):
    """What is distilled. Weights are float32; prediction type and betas are read from its scheduler."""

    source: Text  # "tiny" (the shipped models), a hub id, or a local folder with model_index.json
    dtype: Literal["float32", "bfloat16"] = "float32"  # what the UNet's calls are autocast to
    unet_sha256: Text | None = None  # of its unet's .safetensors as first published: make plan compares
    licence: str | None = None  # of its weights, for the cards of the students made from it


class ShapesData(Strict):
    """The tiny world (splam.data.shapes): how many of its pictures are drawn."""

    kind: Literal["shapes"]
    train_images: PositiveInt
    test_images: PositiveInt  # of the seen and of the unseen set, whose captions are drawn
    reference_images: PositiveInt  # of each of the two, besides


class CocoData(Strict):
    """COCO's validation sets: what the unseen images of the tables at Stable Diffusion's size are (splam.data.coco)."""

    folder: str  # holds annotations/, val2014/ and val2017/ as cocodataset.org packs them
    captions_30k: str | None = None  # a caption list for coco30k; without one, a seeded draw
    captions_5k: str | None = None
    image_size: PositiveInt = 256  # pixels at which images are measured; 256 is the protocol's


class PictureData(Strict):
    """Captioned pictures in shards or in a folder, to train on and for test sets of our own (splam.data)."""

    kind: Literal["laion", "folder"]
    shards: list[str] = []  # of kind laion: paths, globs, brace patterns
    folder: str = ""  # of kind folder
    resolution: PositiveInt  # pixels of the square images that are trained on
    crop: Literal["center", "random"] = "center"
    workers: int = Field(4, ge=0)  # reading processes of each rank; 0 reads in the training process
    smallest_side: PositiveInt = 64  # pixels; a smaller picture is of no use, and counted
    largest_ratio: float = Field(8, ge=1)  # of a picture's sides; of a longer one a square shows too little
    max_broken_share: Share = 0.01  # of samples that are of no use: splam.data.samples
    held_out_share: float = Field(0.01, gt=0, lt=1)  # of the samples, by hash of their keys or files' names
    test_images: PositiveInt  # captions drawn from a test set of our own; as many more are references
    coco: CocoData | None = None  # the unseen sets; without it they are of the pictures held out


class Trajectories(Strict):
    """Teacher trajectories, computed once for each guidance scale and shared by all runs."""

    guidance_scales: list[Scale]
    draws: PositiveInt  # (image, caption, t, noise)
    steps: PositiveInt  # guided DDIM steps of k_phi along each draw
    solver_skip: PositiveInt = 20  # k_phi
    batch_size: PositiveInt
    empty_captions: Share  # of the captions, replaced by the empty one


class LatentsSettings(Strict):
    """Latents and caption embeddings that are encoded once, for training.source = latents."""

    images: PositiveInt  # in the order of a training, up to whole batches
    batch_size: PositiveInt  # images that are encoded at a time
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"


class Training(Strict):
    """Hyperparameters of a distillation (Algorithm 1); `runs.NAME.training` overrides them for one run."""

    iterations: PositiveInt  # optimizer steps
    batch_size: PositiveInt  # of one forward pass of one process
    gradient_accumulation_steps: PositiveInt = 1
    learning_rate: PositiveFloat
    lr_warmup_steps: int = Field(ge=0)  # constant after them
    weight_decay: float = Field(ge=0)
    max_grad_norm: PositiveFloat
    ema_decay: float = Field(ge=0, lt=1)  # mu
    loss: Literal["l2", "huber", "pseudo_huber"]
    huber_c: PositiveFloat = 1e-3
    bf16: bool  # autocast the networks' calls; weights, schedule and averages stay float32
    processes: PositiveInt = 1  # ranks of torchrun on this machine; 1 trains in the notebook
    gradient_checkpointing: bool = False
    compile: bool = False
    deterministic: bool = False  # on a GPU too, at a price in memory and speed; on a CPU every training is
    source: Literal["trajectories", "latents", "data"] = "trajectories"  # of sub-paths: a folder of build/
    checkpoint_seconds: PositiveFloat
    short_ends: Literal["clamped", "strict"] = "clamped"
    sigma_form: Literal["linear", "markov"] = "linear"
    condition_width: int = Field(64, gt=0, multiple_of=2)  # of the time_cond_proj input: e(gamma), or w
    gamma_max_frequency: PositiveFloat = 10.0  # radians over gamma in [0, 1]
    gamma_one_probability: Share = 0.0
    gamma_law: tuple[PositiveFloat, PositiveFloat] = (1.0, 1.0)  # Beta(a, b); (1, 1), uniform, is the paper's
    lora_rank: PositiveInt = 16
    lora_learning_rate: PositiveFloat = 1e-3
    lcm_star_scales: tuple[float, float] = (3.0, 15.0)  # w; LCM's [2, 14] is w - 1
    snapshots: list[PositiveInt] = []  # iterations whose target network is kept, for Fig. 2b


class Run(Strict):
    """One distillation. `name`, `seed` and the whole of `training` are filled in by Params."""

    name: Name
    seed: int
    method: Literal["lcm", "lcm_star", "splam"]
    adapter: Literal["lora"] | None = None  # what is trained of the network; else all of it
    guidance_scale: PositiveFloat  # w; the one that lcm_star is sampled with
    skip: PositiveInt  # k
    multiple_estimation: bool
    input_scaling: Literal["raw", "unit_variance"] = "raw"
    gamma_conditioning: Literal["embedding", "equal_snr_time"] = "embedding"
    training: Training
    variant: str = ""  # a recipe's name in tables and claims, where splam has one beyond the paper's
    ablation: bool = False  # made for `ablations` alone: claims, tables and figures leave it out


class Study(Strict):
    """Runs that are compared with a reference from which each differs, in one factor as a rule."""

    reference: str
    runs: list[str]


class Baseline(Strict):
    """The undistilled teacher, by a diffusers scheduler, or by consistency sampling as if it were a student."""

    method: Text  # the name of its rows in the tables
    sampler: Literal["ddim", "dpmsolver", "dpmsolver++", "unipc", "consistency"]
    steps: list[PositiveInt]
    guidance_scales: list[Scale]  # and whose teacher each is compared with
    drawn_at: Scale | None = None  # the w that all of them are drawn at in place of their own
    datasets: list[Dataset] = ["unseen"]
    other_noise: bool = False  # the teacher's second draw, the floor of what its students can reach


class Pipeline(Strict):
    """A text-to-image pipeline of others' making, measured as the students are: a row of Table 2."""

    method: Text  # the name of its rows; where Table 2 has it, the paper's number stands beside
    source: Text  # a hub id, or a local folder with model_index.json
    lora: str | None = None  # an adapter to load: a hub id, a folder or a file
    scheduler: str | None = None  # a class of diffusers, such as LCMScheduler; else its own
    steps: list[PositiveInt]
    guidance_scale: float = Field(ge=0)  # as the pipeline's own call takes it
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    datasets: list[Dataset] = ["unseen"]


class Gate(Strict):
    """What the undistilled teacher must give before a student's number is believed (splam.report.page)."""

    fid: PositiveFloat  # expected Inception FID
    tolerance: PositiveFloat  # how far off it may be, up or down
    guidance_scale: float
    images: PositiveInt
    sets: list[str] = Field(min_length=1)  # names of the test sets that the expected value is of


class Evaluation(Strict):
    """Protocol of the tables."""

    features: Literal["efficientnet_lite0", "inception"]
    clip: str = "models/tiny/clip"  # of the CLIP score: a folder, or open_clip's "architecture/weights"
    clip_beside: str = ""  # a second model, whose score stands beside the first's
    clip_prefix: str = ""  # put before every caption, such as "A photo depicts "
    gate: Gate | None = None
    images: PositiveInt  # samples of Tables 1, 2a and 2c
    small_images: PositiveInt  # samples of Table 2b
    curve_images: PositiveInt  # samples at each snapshot of Fig. 2b
    curve_steps: PositiveInt
    steps: list[PositiveInt]
    batch_size: PositiveInt
    teacher_steps: PositiveInt
    datasets: dict[Name, list[Dataset]] = {}  # of runs that are drawn for others than unseen; none: snapshots alone


class Delta(Strict):
    """delta(t, k) of Fig. 2c."""

    runs: list[str]
    images: PositiveInt
    skip: PositiveInt
    first_time: PositiveInt


class Latency(Strict):
    """Seconds from caption to image, one caption at a time."""

    run: str
    lora: str
    repeats: PositiveInt


class Pictures(Strict):
    """Which runs and captions the sample figures show."""

    prompts: list[str] = Field(min_length=1)
    guidance_runs: list[str]  # Fig. 3: one run for each w
    lcm: str  # Fig. 4, left
    splam: str  # Fig. 4, right
    gallery: list[str]  # Fig. 5: runs beside the baselines and the teacher
    gallery_baselines: list[str]


class Params(Strict):
    """The whole of params.yaml."""

    profile: Name
    description: str = ""
    expected_minutes: PositiveFloat | None = None  # of `make repro` from nothing, on two cores
    seed: int = Field(ge=0, lt=2**32)
    inputs: str  # a local file or folder: when it changes, the stages that read it look again
    teacher: TeacherSettings
    data: ShapesData | PictureData = Field(discriminator="kind")
    trajectories: Trajectories
    latents: dict[Literal["train"], LatentsSettings] = {}
    training: Training
    runs: dict[Name, Run]
    ablations: dict[str, Study] = {}
    evaluation: Evaluation
    baselines: dict[Name, Baseline]
    pipelines: dict[Name, Pipeline] = {}
    delta: Delta
    latency: Latency
    pictures: Pictures

    @model_validator(mode="before")
    @classmethod
    def _complete_runs(cls, content: Any) -> Any:
        """Every run with its name, the profile's seed, and its training as a whole."""
        if not (isinstance(content, dict) and isinstance(content.get("runs"), dict)):
            return content
        runs, training = dict(content["runs"]), content.get("training")
        for name, run in runs.items():
            own = run.get("training") or {} if isinstance(run, dict) else None
            if isinstance(training, dict) and isinstance(own, dict):  # what else there is, is an error of its own
                runs[name] = {**run, "name": name, "seed": content.get("seed"), "training": training | own}
        return {**content, "runs": runs}


def _disagreements(params: Params) -> Iterator[str]:
    """Runs that do not fit the sources of their sub-paths, and names of runs and baselines that do not exist."""
    cache, source, data = params.trajectories, params.training.source, params.data
    if source == "latents" and not params.latents:
        yield "training.source = latents, but there is no latents.train: set its images and batch_size"
    for name, run in params.runs.items():
        key, steps = f"runs.{name}", run.skip / cache.solver_skip if run.multiple_estimation else 1
        own = run.training.gamma_law != (1, 1) or run.training.gamma_one_probability
        if run.method != "splam" and (run.variant or own):
            yield f"{key}: variant, gamma_law and gamma_one_probability are splam's; {run.method}'s gamma is 1"
        if run.training.source != source:
            yield f"{key}.training.source is set for the whole profile, not for one run"
        if steps != int(steps):
            yield f"{key}.skip = {run.skip}: with multiple_estimation, a multiple of trajectories.solver_skip is needed"
        elif source == "trajectories" and steps > cache.steps:
            yield f"{key}.skip = {run.skip} takes {steps:g} solver steps: trajectories.steps = {cache.steps} is too few"
        if source == "trajectories" and steps > 1 and run.guidance_scale not in cache.guidance_scales:
            yield f"{key}.guidance_scale = {run.guidance_scale:g} is not one of trajectories.guidance_scales"
    if data.kind != "shapes" and (not data.shards, not data.folder) != (data.kind == "folder", data.kind == "laion"):
        yield f"data: kind {data.kind} needs {'shards' if data.kind == 'laion' else 'folder'}, and not the other"
    pictures, latency, datasets = params.pictures, params.latency, params.evaluation.datasets
    if data.kind == "shapes" or not data.coco:  # unseen-small is the first of unseen
        if params.evaluation.small_images > params.evaluation.images:
            yield "evaluation.small_images are the first of evaluation.images: there are fewer"
        others = [entry.datasets for entry in (*params.baselines.values(), *params.pipelines.values())]
        if any("unseen-small" in asked for asked in (*datasets.values(), *others)):
            yield "datasets: unseen-small is measured with unseen, without being named, where there is no data.coco"
    named = {"delta.runs": params.delta.runs, "evaluation.datasets": datasets}
    named["latency"] = [latency.run, latency.lora]
    named["pictures"] = [*pictures.guidance_runs, pictures.lcm, pictures.splam, *pictures.gallery]
    named |= {f"ablations.{key}": [study.reference, *study.runs] for key, study in params.ablations.items()}
    for known, keys in ((params.runs, named), (params.baselines, {"pictures": pictures.gallery_baselines})):
        for key, names in keys.items():
            yield from (f"{key}: no {name!r}{suggestion(name, known)}" for name in names if name not in known)


def suggestion(name: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: the closest one that there is, or all of them."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(known)}"


def parse(content: Any, source: str) -> Params:
    """The parameters that a mapping holds. Raises ParamsError; source: what to call it there."""
    try:
        params = Params.model_validate(content)
    except ValidationError as error:
        lines = [f"{source}:"]
        for detail in error.errors():
            key, own = ".".join(map(str, detail["loc"])), detail.get("ctx", {}).get("error")
            text = f" = {detail['input']!r}: {detail['msg']}" if own is None else f": {own}" if key else str(own)
            lines.append(key + text)
        raise ParamsError("\n".join(lines)) from None
    if errors := list(_disagreements(params)):
        raise ParamsError("\n".join([f"{source}:", *errors]))
    return params


def load_params(path: str | Path = PARAMS, seed: int | None = None) -> Params:
    """The parameters that a stage reads; seed: another one than the file's. Raises ParamsError."""
    content = read_yaml(Path(path), "compose it by `python -m splam.profile PROFILE`")
    return parse(content if seed is None else {**content, "seed": seed}, str(path))


def read_yaml(path: Path, remedy: str) -> dict[str, Any]:
    """A YAML file's mapping; a key given twice, a tab or a wrong encoding is an error that names file and line."""
    if not path.is_file():
        raise ParamsError(f"there is no {path}: {remedy}")
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ParamsError(f"{path} cannot be read: {error}") from None
    if isinstance(content, dict):
        return content
    raise ParamsError(f"{path}: not a mapping of keys to values")
