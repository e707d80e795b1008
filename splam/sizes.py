"""What distilling a teacher takes, by arithmetic from its configurations: weights, work, GPU memory, hours, disk.

Networks are built without numbers in them, so that it takes a second and no memory. What is assumed is a named
constant here; `splam.plan` prints the assumptions beside what follows from them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from splam.params import Params, ResolvedRun, Run, Training, reads_latents, resolve

FLOAT32, HALF = 4, 2  # bytes
PEAK_SHARE = 0.3  # of a GPU's peak rate that training reaches
CHECKPOINTED = 0.25  # of the activations that gradient checkpointing leaves to be stored
NORMS = 1.5  # autocast keeps the inputs of normalisations in float32: so much more than bfloat16 throughout
ENCODER_TENSORS = 4  # of the autoencoder's largest size that are alive at once while it encodes
OVERHEAD = 2 << 30  # bytes of CUDA's context, libraries' workspaces and fragmentation
FEATURES = {"inception": 2048, "efficientnet_lite0": 1280}  # numbers of an image
CLIP_WIDTH = 1024  # numbers of a caption, at most
KNOWN = {"stable-diffusion-v1-5": "sd15", "stable-diffusion-2-1-base": "sd21"}  # by the last part of a hub id


@dataclass(frozen=True)
class Shapes:
    """Configurations of a pipeline's networks, as diffusers and transformers write them."""

    unet: dict[str, Any]
    vae: dict[str, Any]
    text_encoders: list[dict[str, Any]]

    @classmethod
    def of_folder(cls, folder: Path) -> Shapes:
        """Of a pipeline folder."""
        unet, vae = (json.loads((folder / part / "config.json").read_text()) for part in ("unet", "vae"))
        texts = [folder / part / "config.json" for part in ("text_encoder", "text_encoder_2")]
        return cls(unet, vae, [json.loads(path.read_text()) for path in texts if path.is_file()])

    @classmethod
    def known(cls, source: str) -> Shapes | None:
        """Of a hub id whose configurations are public and written down here, so that its files are not needed."""
        name = KNOWN.get(source.rsplit("/", 1)[-1])
        if name is None:
            return None
        return cls(**json.loads(files("splam.assets").joinpath("architectures.json").read_text())[name])

    @property
    def pixels(self) -> int:
        """Size of the images, along each side."""
        return self.unet["sample_size"] * 2 ** (len(self.vae["block_out_channels"]) - 1)


@dataclass(frozen=True)
class Work:
    """Of one pipeline: numbers of weights, floating-point operations of one call for one sample, bytes of one sample.

    activations: what a backward pass of the UNet needs to be kept, in bfloat16, without gradient checkpointing.
    """

    unet_weights: int
    vae_weights: int
    text_weights: int
    unet_flops: float
    encode_flops: float
    decode_flops: float
    activations: float
    latent: int
    tokens: int
    width: int
    pixels: int
    first_channels: int

    @property
    def weights(self) -> int:
        """Of the whole pipeline."""
        return self.unet_weights + self.vae_weights + self.text_weights


def text_weights(config: dict[str, Any]) -> int:
    """Weights of a transformer text encoder: embeddings, and attention and two layers a block, with biases."""
    d, inner = config["hidden_size"], config["intermediate_size"]
    block = 4 * (d * d + d) + 2 * d * inner + d + inner + 4 * d
    rows = config["vocab_size"] + config.get("max_position_embeddings", 0)
    return rows * d + config["num_hidden_layers"] * block + 2 * d


def work_of(shapes: Shapes) -> Work:
    """Build the networks without numbers, call each once and count."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from torch._subclasses.fake_tensor import FakeTensorMode

    tokens = shapes.text_encoders[0].get("max_position_embeddings", 77) if shapes.text_encoders else 77
    with FakeTensorMode():
        unet, vae = UNet2DConditionModel.from_config(shapes.unet), AutoencoderKL.from_config(shapes.vae)
        latent = (1, unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
        width = unet.config.cross_attention_dim
        inputs = (torch.empty(latent), torch.ones(1, dtype=torch.long), torch.empty(1, tokens, width))
        more = _added_inputs(unet.config)
        image = torch.empty(1, 3, shapes.pixels, shapes.pixels)
        return Work(
            unet_weights=_count(unet),
            vae_weights=_count(vae),
            text_weights=sum(map(text_weights, shapes.text_encoders)),
            unet_flops=_flops(lambda: unet(*inputs, **more)),
            encode_flops=_flops(lambda: vae.encode(image)),
            decode_flops=_flops(lambda: vae.decode(torch.empty(1, vae.config.latent_channels, *latent[2:]))),
            activations=_activations(unet, lambda: unet(*inputs, **more)),
            latent=math.prod(latent),
            tokens=tokens,
            width=width,
            pixels=shapes.pixels,
            first_channels=vae.config.block_out_channels[0],
        )


def _added_inputs(config) -> dict[str, Any]:
    """What SDXL's UNet is fed besides."""
    import torch

    if config.addition_embed_type != "text_time":
        return {}
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    return {"added_cond_kwargs": {"text_embeds": torch.empty(1, pooled), "time_ids": torch.empty(1, 6)}}


def _count(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _flops(call) -> float:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return float(counter.get_total_flops())


def _activations(unet, call) -> float:
    """Bytes that autograd keeps of one call in bfloat16; weights and their half-precision copies do not count."""
    import torch

    kept: dict[int, Any] = {}
    weights = {tuple(parameter.shape) for parameter in unet.parameters()}

    def keep(tensor):
        if tuple(tensor.shape) not in weights and tuple(tensor.t().shape if tensor.dim() == 2 else ()) not in weights:
            kept[tensor.untyped_storage()._cdata] = tensor  # kept alive, or its address would be used again
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        call()
    return float(sum(tensor.untyped_storage().nbytes() for tensor in kept.values()))


# Time


@dataclass(frozen=True)
class Speed:
    """Floating-point operations a second: of the UNet in bfloat16, of the autoencoder in TF32."""

    name: str
    unet: float
    vae: float


A100 = Speed(
    f"an A100 at {PEAK_SHARE:.0%} of its peak (312 TFLOP/s in bfloat16; the autoencoder in TF32, 156)",
    PEAK_SHARE * 312e12,
    PEAK_SHARE * 156e12,
)


def path_calls(run: Run, training: Training, solver_skip: int) -> dict[str, float]:
    """UNet calls' worth of work for one sub-path (Alg. 1), by network.

    The teacher's two a solver step, wherever its paths come from; the target's one, or one for each of the m points
    where they differ (target_gap); the student's m, each with a backward pass, which costs two. Under a skip_law k is
    on average half way between k_phi and k.
    """
    steps = math.ceil(run.skip / solver_skip)
    mean = steps if training.skip_law == "fixed" else (steps + 1) / 2
    m = training.gammas_per_path
    return {
        "teacher": 2 * mean if run.multiple_estimation else 2,
        "target": m if training.target_gap < 1 else 1,
        "student": m * (4 if training.gradient_checkpointing else 3),
    }


def training_calls(resolved: ResolvedRun, solver_skip: int) -> dict[str, int]:
    """path_calls over all sub-paths of a whole training: what two recipes at equal compute have in common.

    The teacher's are counted as if no cache shared them, as it is at Stable Diffusion's size.
    """
    paths = training_samples(resolved.training)
    return {name: round(paths * n) for name, n in path_calls(resolved.run, resolved.training, solver_skip).items()}


def calls_per_sample(run: Run, training: Training, solver_skip: int) -> float:
    """path_calls of all networks; a cached path costs no call of the teacher's while it is trained on."""
    calls = path_calls(run, training, solver_skip)
    return sum(calls.values()) - (calls["teacher"] if training.source == "cached" else 0)


def seconds_per_sample(work: Work, run: Run, training: Training, solver_skip: int, speed: Speed) -> float:
    """Estimated seconds of one training sample on one GPU."""
    calls = calls_per_sample(run, training, solver_skip)
    encode = work.encode_flops if training.source == "online" else 0.0
    return calls * work.unet_flops / speed.unet + encode / speed.vae


def encoded_images(params: Params) -> int:
    """Images that the latents stage encodes; 0 where no run reads them."""
    return params.latents.batches * params.latents.batch_size if reads_latents(params) else 0


def encoding_hours(params: Params, work: Work, speed: Speed) -> float:
    """Estimated GPU-hours of the latents stage; the text encoder is not counted."""
    return encoded_images(params) * work.encode_flops / speed.vae / 3600


def training_samples(training: Training) -> int:
    """Samples, which are sub-paths, that a whole training sees."""
    return training.iterations * training.global_batch


def runs_of(params: Params) -> list[ResolvedRun]:
    """All distillations that a profile has to make."""
    return [resolve(params, name) for name in params.matrix.runs]


def image_counts(params: Params) -> dict[str, int]:
    """Images of each test set; in the tiny world the small set is a part of the unseen one."""
    evaluation, emoji = params.evaluation, params.data.kind == "emoji"
    seen = evaluation.images if emoji else params.data.test_images
    return {"unseen": evaluation.images, "unseen-small": 0 if emoji else evaluation.small_images, "seen": seen}


def drawn_images(params: Params) -> Iterator[tuple[int, int]]:
    """(images, UNet calls of each) of everything that the evaluation stages draw."""
    evaluation, counts = params.evaluation, image_counts(params)
    for resolved in runs_of(params):
        sets = [counts[dataset] for dataset in resolved.run.datasets]
        yield from ((count, steps) for count in sets for steps in evaluation.steps)
        yield from ((evaluation.curve_images, evaluation.curve_steps) for _ in resolved.training.snapshots)
    for baseline in evaluation.baselines.values():  # two calls a step: classifier-free guidance
        sets = [counts[dataset] for dataset in baseline.datasets]
        yield from ((n, 2 * steps) for n in sets for steps in baseline.steps for _ in baseline.guidance_scales)
    for _ in params.trajectories.guidance_scales:
        yield counts["unseen"] + counts["unseen-small"], 2 * evaluation.teacher_steps


def evaluation_hours(params: Params, work: Work, speed: Speed) -> float:
    """Estimated GPU-hours of drawing all images that are measured; the feature networks are not counted."""
    drawn = list(drawn_images(params))
    calls, images = sum(n * calls for n, calls in drawn), sum(n for n, _ in drawn)
    return (calls * work.unet_flops / speed.unet + images * work.decode_flops / speed.vae) / 3600


# Memory and disk


def memory_per_process(work: Work, run: Run, training: Training) -> dict[str, float]:
    """Estimated bytes of GPU memory of one training process, by what they are for; all is float32 but activations."""
    unet, share = FLOAT32 * work.unet_weights, 1 / training.processes if training.sharding == "fsdp" else 1.0
    trained = 0.05 if run.method == "lcm_lora" else 1.0  # an adapter is a few hundredths of its network
    moments = 2 * unet * (0.25 if training.optimizer == "adamw_8bit" else 1.0)
    points = training.batch_size * training.gammas_per_path
    buckets = unet if training.processes > 1 and training.sharding == "none" else 0.0  # DDP's copy of the gradients
    kept = work.activations * NORMS * (CHECKPOINTED if training.gradient_checkpointing else 1.0)
    encoding = ENCODER_TENSORS * FLOAT32 * work.first_channels * work.pixels**2 if training.source == "online" else 0.0
    return {
        "student and its average": 2 * unet * share,
        "gradients and moments": (unet + buckets + moments) * trained * share,
        "teacher": FLOAT32 * work.weights,
        "bfloat16 copies": HALF * work.unet_weights,
        f"activations of {points} samples": max(points * kept, training.batch_size * encoding),
        "CUDA": float(OVERHEAD),
    }


def latent_bytes(params: Params, work: Work) -> int:
    """Bytes of one image's latents and caption embeddings, as the latents stage keeps them."""
    from splam.data.latents import DTYPES, bytes_per_image

    dtype = params.latents.dtype if params.latents else "float16"
    return bytes_per_image((work.latent,), work.tokens, work.width, DTYPES[dtype])


def checkpoint_bytes(work: Work, run: Run) -> float:
    """Student, average and two moments, in float32; of an adapter alone for LoRA."""
    return 4 * FLOAT32 * work.unet_weights * (0.05 if run.method == "lcm_lora" else 1.0)


def disk_bytes(params: Params, work: Work, sample_bytes: float = 0.0) -> dict[str, float]:
    """Estimated bytes of what the stages write, by what it is; DVC's cache may hold all but checkpoints once more.

    sample_bytes: of one image with its caption in the shards.
    """
    evaluation, counts, runs = params.evaluation, image_counts(params), runs_of(params)
    unet = FLOAT32 * work.unet_weights
    snapshots = sum(len(resolved.training.snapshots) for resolved in runs)
    images = sum(counts.values())
    references = images if params.data.kind == "emoji" else 40504 + 5000 + params.data.test_images
    size = params.data.coco.image_size if params.data.kind == "laion" else work.pixels
    settings = params.trajectories
    second = (settings.steps + 1) * len(settings.second_order) / len(settings.guidance_scales)
    chain = (settings.steps + 3 + second) * work.latent + work.tokens * work.width
    kept = max(resolved.training.keep_checkpoints + 1 for resolved in runs)
    return {
        "teacher": FLOAT32 * work.weights,
        f"{len(runs)} students": len(runs) * FLOAT32 * work.weights,
        f"{snapshots} snapshots": snapshots * unet,
        f"{kept} checkpoints of one training": kept * max(checkpoint_bytes(work, r.run) for r in runs),
        "teacher's images": len(settings.guidance_scales) * evaluation.images * 3 * size**2,
        "trajectories": len(settings.guidance_scales) * settings.draws * chain * FLOAT32,
        "latents": encoded_images(params) * latent_bytes(params, work),
        "references": FLOAT32 * (references * FEATURES[evaluation.features] + images * CLIP_WIDTH),
        "test split": 2 * params.data.test_images * sample_bytes if params.data.kind == "laion" else 0.0,
    }
