"""What a profile still needs on this machine, before anything is spent; `make plan` runs it.

    python -m splam.preflight sd15-w3 [--set a.b=c ...]

Everything that the profile names is opened by the code that its stages use. What is missing is listed at once, with
where it comes from and the command that fetches it; the exit status says whether anything is. Nothing is written, and
the network is not used: of a hub, only the local cache is looked at.
"""

import hashlib
import itertools
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from cleanfid.downloads_helper import inception_url

from splam.config import ROOT, CocoData, Params, PictureData, Pipeline, parse
from splam.data.coco import SPLITS, read_coco
from splam.data.images import DataError
from splam.data.pictures import survey
from splam.data.samples import Tally
from splam.data.shards import expand_shards, read_shard
from splam.distill.checkpoints import KEEP
from splam.measure.clip import load_clip
from splam.measure.fid import inception_weights, load_features
from splam.networks.pipelines import open_any
from splam.networks.teacher import HUB_ID, TINY_MODELS, Teacher, assemble_teacher, load_teacher
from splam.profile import asked_for

OK, NOTE, PROBLEM = "✓", "·", "✗"
PEEK = 4  # samples of every shard that are looked at
Line = tuple[str, str]  # a mark and a finding; that of a problem ends with its remedy


def check(what: str, remedy: str, load: Callable[[], object]) -> Line:
    """What `load` says of a thing that it opens, or why it cannot, and the remedy."""
    try:
        return OK, f"{what}: {load()}"
    except Exception as error:  # what a damaged file raises is up to the library that reads it
        reason = isinstance(error, OSError | ValueError | RuntimeError) and str(error) or repr(error)
        return PROBLEM, f"{what}: {reason.splitlines()[0]}: {remedy}"


def find(source: str) -> Path:
    """The local folder or file of a source, or where the hub's local cache holds it. Raises FileNotFoundError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    if (ROOT / source).exists():
        return ROOT / source
    try:
        return Path(snapshot_download(source, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        raise FileNotFoundError("neither a local path nor in the hub's local cache") from None


def download(source: str) -> str:
    """The command that fetches what is needed of a hub's pipeline: no safety checker, no other precision."""
    call = f"from diffusers import DiffusionPipeline; DiffusionPipeline.download('{source}', safety_checker=None)"
    return f'python -c "{call}"' if HUB_ID.fullmatch(source) else "put it there"


def teacher(params: Params) -> tuple[Line, Teacher | None]:
    """The finding about teacher.source, and the teacher where there is one."""
    source, loaded = params.teacher.source, []

    def load() -> str:
        with tempfile.TemporaryDirectory() as folder:
            if source == "tiny":
                assemble_teacher(source, Path(folder))
            loaded.append(load_teacher(folder if source == "tiny" else find(source)))
            return fits(loaded[0], params)

    fetch = f"git checkout {TINY_MODELS}" if source == "tiny" else download(source)
    line = check(f"the teacher, {source}", f"{fetch}, or name another one in teacher.source", load)
    return line, loaded[0] if loaded else None


def fits(teacher: Teacher, params: Params) -> str:
    """What a teacher draws. Raises ValueError unless that is data.resolution, and its UNet is teacher.unet_sha256."""
    size, original = getattr(params.data, "resolution", teacher.image_size), params.teacher.unet_sha256
    if size != teacher.image_size:
        raise ValueError(f"it draws {teacher.image_size} pixels: set data.resolution, which is {size}, to that")
    if original:
        with (teacher.folder / "unet/diffusion_pytorch_model.safetensors").open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != original:
            raise ValueError(f"its UNet has sha256 {found}, the original's is {original}")
    return f"{size} pixels" + ", the original by its UNet's hash" * bool(original)


def shards(data: PictureData) -> Iterator[Line]:
    """Findings about the training images: every shard is opened, and its first samples are read."""
    try:
        names = expand_shards(data.shards)
    except DataError as error:
        yield PROBLEM, f"{error} (img2dataset makes them: docs/stable-diffusion.md has its command)"
        return
    good = 0
    for name in names:
        try:
            peek(name, data)
            good += 1
        except DataError as error:
            yield PROBLEM, str(error)
    if good:
        yield OK, f"{good:,} shards; of each, the first samples can be trained on"


def peek(shard: str, data: PictureData) -> None:
    """Raise DataError if none of the first samples of a shard can be trained on."""
    tally = Tally(data.model_copy(update={"max_broken_share": 1.0}))
    first = [tally.opened(sample, 8) for sample in itertools.islice(read_shard(shard, tally), PEEK)]
    if all(image is None for image in first):
        raise DataError(f"shard {shard}: its first samples are of no use: {tally}: take it out of data.shards")


def folder(data: PictureData) -> list[Line]:
    """The finding about a folder of pictures: it is read as the data stage does."""

    def load() -> str:
        with tempfile.TemporaryDirectory() as scratch:
            return survey(data, Path(scratch))["read"]

    return [check(f"the pictures in {data.folder}", "docs/own-model.md says more", load)]


def coco(data: CocoData, wanted: dict[str, int]) -> Iterator[Line]:
    """Findings about COCO's images and caption lists; wanted: captions of "coco30k" and "coco5k" that are drawn."""
    for name, split in SPLITS.items():
        key = f"data.coco.captions_{name.removeprefix('coco')}"
        try:
            found = read_coco(data, name)
        except DataError as error:
            yield PROBLEM, str(error)
            continue
        yield OK, f"{split}: {len(found.images):,} images"
        if len(found.captions) < wanted[name]:
            few = f"{len(found.captions):,} captions, {wanted[name]:,} are drawn"
            yield PROBLEM, f"{found.protocol} has {few}: give a longer list in {key}"
        elif found.protocol != name:
            yield NOTE, f"{name}: a seeded draw, and results say so; for the published list of captions set {key}"


def features(name: str) -> Line:
    """Whether the network of the FID is there."""
    path = inception_weights()
    if name == "inception" and not path.is_file():
        return PROBLEM, f"the FID's network is not at {path}: curl -L --create-dirs -o {path} {inception_url}"
    return check("the FID's network", "install requirements.txt", lambda: load_features(name) and name)


def clip(source: str, key: str) -> Line:
    """Whether a CLIP score's model is there: a folder, or a name of open_clip's in the local cache."""
    architecture, _, weights = source.partition("/")
    fetch = f"python -c \"import open_clip; open_clip.create_model('{architecture}', '{weights}')\""
    remedy = f"git checkout {source}" if (ROOT / source).is_dir() else f"{fetch}, or name another"
    return check(f"{key}, {source}", remedy, lambda: load_clip(source).name)


def other(key: str, settings: Pipeline) -> Line:
    """Whether one of `pipelines`, with its adapter, can be opened."""

    def load() -> Path:
        open_any(place := find(settings.source), settings.scheduler, settings.lora and str(find(settings.lora)))
        return place

    fetch = download(settings.source) + (f" and hf download {settings.lora}" if settings.lora else "")
    return check(f"pipelines.{key}, {settings.source}", fetch, load)


def machine(params: Params, pipeline: Teacher) -> Iterator[Line]:
    """What the disk and the GPUs have to hold."""
    runs = params.runs.values()
    unet, *others = (4 * part.num_parameters() for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder))
    kept = (unet + sum(others)) * (1 + len(runs)) + unet * sum(len(run.training.snapshots) for run in runs)
    coco = getattr(params.data, "coco", None)
    size, scales = coco.image_size if coco else pipeline.image_size, params.trajectories.guidance_scales
    kept += 3 * size**2 * params.evaluation.images * len(scales)
    scratch = 4 * unet * (KEEP + 1)  # a student, its average and two moments; one more while it is written
    for settings in params.latents.values():
        numbers = math.prod(pipeline.latent_shape) + pipeline.empty[0].numel()
        scratch += settings.images * numbers * getattr(torch, settings.dtype).itemsize
    needed, free = (2 * kept + scratch) / 1e9, shutil.disk_usage(ROOT).free / 1e9
    text = f"{needed:,.1f} GB for the teacher, its images and {len(runs)} students, all in DVC's cache too, and scratch"
    room = "make room, or take runs out (--set runs.NAME=null)"
    yield (OK, f"{text}; {free:,.1f} are free") if needed < free else (PROBLEM, f"{text}: {room}")
    gpus, processes = torch.cuda.device_count(), max(run.training.processes for run in runs)
    if not gpus and unet > 4e8:  # bytes: 100 M weights are not trained on a CPU
        yield PROBLEM, "no GPU here: run it on a machine with CUDA GPUs"
    elif 0 < gpus < processes:
        accumulation = -(-processes * params.training.gradient_accumulation_steps // gpus)
        fewer = f"--set training.processes={gpus} training.gradient_accumulation_steps={accumulation}"
        yield PROBLEM, f"training.processes = {processes}, there are {gpus} GPUs: {fewer} keeps the global batch"


def sections(params: Params) -> dict[str, list[Line]]:
    """All findings, by section."""
    line, pipeline = teacher(params)
    found, data, evaluation = {"Teacher": [line]}, params.data, params.evaluation
    found["Pictures"] = list({"shapes": lambda _: (), "laion": shards, "folder": folder}[data.kind](data))
    if sets := getattr(data, "coco", None):
        found["COCO"] = list(coco(sets, {"coco30k": evaluation.images, "coco5k": evaluation.small_images}))
    clips = [clip(name, f"evaluation.{key}") for key in ("clip", "clip_beside") if (name := getattr(evaluation, key))]
    found["Networks that measure"] = [features(evaluation.features), *clips]
    found["Pipelines"] = [other(key, settings) for key, settings in params.pipelines.items()]
    found["Machine"] = list(machine(params, pipeline)) if pipeline else [(NOTE, "known once the teacher is there")]
    return {title: lines for title, lines in found.items() if lines}


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status, 0 where nothing is missing."""
    import diffusers
    import transformers

    params = parse(asked_for("splam.preflight", __doc__.splitlines()[0], arguments), "profile")
    print(f"Profile {params.profile}: {params.description}")
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    found = sections(params)
    for title, lines in found.items():
        print("\n".join([f"\n{title}", *(f"  {mark} {text}" for mark, text in lines)]))
    problems = sum(mark == PROBLEM for lines in found.values() for mark, _ in lines)
    print(f"\nNot ready: {problems} of these, marked {PROBLEM}." if problems else "\nReady.")
    return int(bool(problems))


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.exit(main())
