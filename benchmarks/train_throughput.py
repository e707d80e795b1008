"""Peak memory and images per second of distillation at Stable Diffusion 1.5's size, with random weights.

    python -m benchmarks.train_throughput             # on a GPU; writes benchmarks/gpu-throughput.md
    python -m benchmarks.train_throughput --tiny-cpu  # the same code on a shrunk network, to see that it runs

Nothing is downloaded: speed and memory do not depend on what the weights are. Every row is a training as
splam.distill runs it: images are encoded, carried along by the teacher, and one AdamW step is made. The last rows are
the runs of sd15-night with their own batch size, for the aim that they stay below 20 GB.
"""

import argparse
import dataclasses
import gc
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from splam.config import ROOT, Run, Trajectories, parse
from splam.distill.loop import Distillation
from splam.distill.online import OnlinePaths
from splam.method.schedule import Schedule
from splam.networks.teacher import Teacher, float32_output, tiny_scheduler
from splam.profile import compose

UNET = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
VAE = {
    "sample_size": 512,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
}
TEXT = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
}
TINY_UNET = UNET | {
    "sample_size": 8,
    "block_out_channels": (8, 16, 16, 16),
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "cross_attention_dim": 16,
}
TINY_VAE = VAE | {"sample_size": 64, "block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "layers_per_block": 1}
TINY_TEXT = TEXT | {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@dataclasses.dataclass(frozen=True)
class RandomImages:
    """A stream of noise images, so that reading data is not what is measured."""

    size: int
    pixels: int

    def batches(self, start: int = 0) -> Iterator[tuple[torch.Tensor, list[str]]]:
        """The same batch for ever."""
        images = torch.rand(self.size, 3, self.pixels, self.pixels) * 2 - 1
        while True:
            yield images, ["a caption of some length"] * self.size


def random_teacher(device: str, tiny: bool) -> Teacher:
    """Stable Diffusion 1.5 as to its shapes."""
    torch.manual_seed(0)
    with torch.device(device):
        unet = float32_output(UNet2DConditionModel(**(TINY_UNET if tiny else UNET)))
        vae = AutoencoderKL(**(TINY_VAE if tiny else VAE))
        text = CLIPTextModel(CLIPTextConfig(**(TINY_TEXT if tiny else TEXT)))
    for part in (unet, vae):
        part.to(memory_format=torch.channels_last)
    for part in (unet, vae, text):
        part.eval().requires_grad_(False)
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)
    scheduler = tiny_scheduler()  # Stable Diffusion's betas
    schedule = Schedule.from_alphas_cumprod(scheduler.alphas_cumprod).to(device)
    return Teacher(unet, vae, text, tokenizer, schedule, dict(scheduler.config), Path(), bf16=True)


def authors_run(trained: str, skip: int, compiled: bool, checkpointing: bool, batch_size: int) -> Run:
    """SPLAM or SPLAM-LoRA in bf16 autocast, with the authors' hyperparameters; k = 100 with multiple estimation."""
    training = {
        "iterations": 1,
        "batch_size": batch_size,
        "learning_rate": 8e-6,
        "lr_warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "ema_decay": 0.95,
        "loss": "huber",
        "bf16": True,
        "gradient_checkpointing": checkpointing,
        "compile": compiled,
        "source": "data",
        "lora_rank": 64,
        "checkpoint_seconds": 1e9,
    }
    facts = {"name": "splam", "seed": 0, "method": "splam", "guidance_scale": 8, "skip": skip}
    facts["adapter"] = "lora" if trained == "LoRA" else None
    return Run(**facts, multiple_estimation=skip > 20, training=training)


def all_runs(batch_size: int) -> Iterator[tuple[str, Run]]:
    """What is measured, each with the first cell of its row: a grid, and a micro-batch of each run of sd15-night."""
    for values in itertools.product(("full", "LoRA"), (20, 100), (False, True), (False, True)):
        yield values[0], authors_run(*values, batch_size)
    night = parse(compose("sd15-night", ["training.gradient_accumulation_steps=1"]), "sd15-night")
    yield from ((f"sd15-night, {name}", run) for name, run in night.runs.items())


def measure(run: Run, teacher: Teacher, warm_up: int, steps: int) -> dict[str, str]:
    """One line: GB at the peak (of the GPU, over all that training allocates), and images per second."""
    device, training = teacher.device, run.training
    cuda, batch_size = device.type == "cuda", training.batch_size
    pixels = teacher.vae.config.sample_size
    settings = Trajectories(guidance_scales=[8], draws=1, steps=5, batch_size=1, empty_captions=0.1)
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    try:
        source = OnlinePaths(RandomImages(batch_size, pixels), run, teacher, settings)
        job = Distillation(run, teacher, source)
        for step in range(warm_up):
            job.step(step).item()
        start = time.perf_counter()
        for step in range(steps):
            job.step(warm_up + step).item()  # .item() waits for the GPU
        rate = f"{batch_size * steps / (time.perf_counter() - start):.1f}"
        peak = f"{torch.cuda.max_memory_allocated(device) / 1e9:.1f}" if cuda else "not measured on a CPU"
    except torch.cuda.OutOfMemoryError:
        rate, peak = "", "out of memory"
    return {
        "k": f"{run.skip}{', ME' if run.multiple_estimation else ''}",
        "batch": str(batch_size),
        "compile": "yes" if training.compile else "no",
        "checkpointing": "yes" if training.gradient_checkpointing else "no",
        "peak memory (GB)": peak,
        "images / s": rate,
    }


def clean_up(teacher: Teacher) -> None:
    """Forget the last cell: its networks, and that the teacher was compiled."""
    teacher.unet._compiled_call_impl = None
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def table(rows: list[dict[str, str]]) -> str:
    """Rows as Markdown."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(rows: list[dict[str, str]], device: str) -> str:
    """benchmarks/gpu-throughput.md."""
    return f"""# Training throughput on a GPU

Stable Diffusion 1.5's networks with random weights, 512-pixel images, bf16 autocast over float32 weights, one process
on: {device}; torch {torch.__version__}. A step encodes the images, carries them along by the teacher (two UNet calls a
solver step: one step at k = 20, five at k = 100 with multiple estimation), and updates the student and its average.
Peak memory is what torch allocated, in units of 1e9 bytes. Measured by `make bench-gpu`.

{table(rows)}
"""


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny-cpu", action="store_true", help="shrunk networks on the CPU: its numbers mean nothing")
    parser.add_argument("--batch-size", type=int, default=12, help="the authors' batch for each GPU")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each cell")
    parser.add_argument("--warm-up", type=int, default=5)
    parser.add_argument("--out", type=Path, help="default: benchmarks/gpu-throughput.md, or none with --tiny-cpu")
    options = parser.parse_args(arguments)
    if not options.tiny_cpu and not torch.cuda.is_available():
        print(
            "No CUDA device: nothing was measured. Run this on a GPU, or try the code by --tiny-cpu.", file=sys.stderr
        )
        return 1
    if options.tiny_cpu:
        torch._dynamo.config.disable = True  # compiling takes minutes on a CPU
    device = "cpu" if options.tiny_cpu else "cuda"
    teacher = random_teacher(device, options.tiny_cpu)
    rows = []
    for name, run in all_runs(options.batch_size):
        rows.append({"trained": name} | measure(run, teacher, options.warm_up, options.steps))
        print(" | ".join(rows[-1].values()), flush=True)
        clean_up(teacher)
    text = page(rows, "a CPU, with shrunk networks" if options.tiny_cpu else torch.cuda.get_device_name())
    out = options.out or (None if options.tiny_cpu else ROOT / "benchmarks/gpu-throughput.md")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
