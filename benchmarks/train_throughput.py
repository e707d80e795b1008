"""Peak memory and images per second of distillation at Stable Diffusion 1.5's size, with random weights.

    python -m benchmarks.train_throughput             # on a GPU; writes gpu-throughput.md and gpu-step.csv
    python -m benchmarks.train_throughput --tiny-cpu  # the same code on shrunk networks, to see that it runs

Nothing is downloaded: speed and memory do not depend on what the weights are. Every row of the first is a training as
splam.distill runs it, images encoded in every step; its last ones are the runs of sd15-night with their own batch size,
for the aim that they stay below 20 GB. The second compares a step with the public scripts' (benchmarks.training).
"""

import argparse
import gc
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from benchmarks.compare import CAPTION, CPU, FOLDER, provenance, tiny_params, write
from benchmarks.training import RUNS, a_run, compare, endless
from splam.config import Run, Trajectories, parse
from splam.distill.loop import Distillation
from splam.distill.online import OnlinePaths
from splam.method.schedule import Schedule
from splam.networks.teacher import Teacher, float32_output, tiny_scheduler
from splam.profile import compose

KEYS = list(RUNS)  # what is compared with the scripts
BLOCKS = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
UNET = {"sample_size": 64, "cross_attention_dim": 768}  # diffusers' and transformers' defaults are 1.5's otherwise
VAE = {"sample_size": 512, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2} | BLOCKS
TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
SMALL = {"norm_num_groups": 4, "layers_per_block": 1}
TINY_UNET = SMALL | {"sample_size": 8, "block_out_channels": (8, 16, 16, 16), "cross_attention_dim": 16}
TINY_VAE = BLOCKS | SMALL | {"sample_size": 64, "block_out_channels": (8, 8, 8, 8)}
TINY_TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def random_teacher(device: str, tiny: bool) -> Teacher:
    """Stable Diffusion 1.5 as to its shapes."""
    torch.manual_seed(0)
    with torch.device(device):
        unet = float32_output(UNet2DConditionModel(**(TINY_UNET if tiny else UNET)))
        vae = AutoencoderKL(**(TINY_VAE if tiny else VAE))
        text = CLIPTextModel(CLIPTextConfig(**(TINY_TEXT if tiny else TEXT)))
    for part in (unet, vae, text):
        part.to(memory_format=torch.channels_last).eval().requires_grad_(False)
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)
    schedule = Schedule.from_alphas_cumprod(tiny_scheduler().alphas_cumprod).to(device)
    return Teacher(unet, vae, text, tokenizer, schedule, dict(tiny_scheduler().config), Path(), bf16=True)


def all_runs(batch_size: int) -> Iterator[tuple[str, Run]]:
    """What is measured, each with the first cell of its row: a grid, and a micro-batch of each run of sd15-night."""
    batch, rate = f"training.batch_size={batch_size}", "training.learning_rate=8e-6"
    params = tiny_params(batch, rate, "training.bf16=true", "training.source=data", "training.lora_rank=64")
    for adapter, k, compiled, checkpointing in itertools.product(
        (None, "lora"), (20, 100), (False, True), (False, True)
    ):
        run = a_run(params, RUNS["authors", k] | {"adapter": adapter, "guidance_scale": 8})
        changes = {"compile": compiled, "gradient_checkpointing": checkpointing}
        yield (
            "LoRA" if adapter else "full",
            run.model_copy(update={"training": run.training.model_copy(update=changes)}),
        )
    night = parse(compose("sd15-night", ["training.gradient_accumulation_steps=1"]), "sd15-night")
    yield from ((f"sd15-night, {name}", run) for name, run in night.runs.items())


def measure(run: Run, teacher: Teacher, steps: int) -> dict[str, str]:
    """One row: GB at the peak (of the GPU, over all that training allocates), and images per second."""
    training, size = run.training, teacher.vae.config.sample_size
    batch = torch.rand(training.batch_size, 3, size, size) * 2 - 1, [CAPTION] * training.batch_size
    settings = Trajectories(guidance_scales=[8], draws=1, steps=5, batch_size=1, empty_captions=0.1)
    if not CPU:
        torch.cuda.reset_peak_memory_stats()
    try:
        job = Distillation(run, teacher, OnlinePaths(endless(batch), run, teacher, settings))
        for step in range(steps // 4 + steps):
            if step <= steps // 4:  # what comes before is not timed
                start = time.perf_counter()
            job.step(step).item()  # .item() waits for the GPU
        rate = f"{training.batch_size * steps / (time.perf_counter() - start):.1f}"
        peak = "not measured on a CPU" if CPU else f"{torch.cuda.max_memory_allocated() / 1e9:.1f}"
    except torch.cuda.OutOfMemoryError:
        rate, peak = "", "out of memory"
    facts = {"k": f"{run.skip}{', ME' * run.multiple_estimation}", "batch": str(training.batch_size)}
    facts |= {"compile": training.compile, "checkpointing": training.gradient_checkpointing}
    return facts | {"peak memory (GB)": peak, "images / s": rate}


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny-cpu", action="store_true", help="shrunk networks on the CPU: its numbers mean nothing")
    parser.add_argument("--batch-size", type=int, default=12, help="the authors' batch for each GPU")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each cell")
    parser.add_argument("--out", type=Path, default=FOLDER, help="a folder (%(default)s)")
    options = parser.parse_args(arguments)
    if CPU and not options.tiny_cpu:
        print("No CUDA device: nothing was measured. Use a GPU, or try the code by --tiny-cpu.", file=sys.stderr)
        return 1
    torch._dynamo.config.disable = options.tiny_cpu  # compiling takes minutes on a CPU
    teacher, rows = random_teacher("cpu" if CPU else "cuda", options.tiny_cpu), []
    for name, run in all_runs(options.batch_size):
        rows.append({"trained": name} | measure(run, teacher, options.steps))
        print(*rows[-1].values(), sep=" | ", flush=True)
        teacher.unet._compiled_call_impl = None  # the next training compiles it itself
        torch._dynamo.reset()
        gc.collect()
        None if CPU else torch.cuda.empty_cache()
    where = "a CPU, with shrunk networks" if CPU else torch.cuda.get_device_name()
    about = f"On {where}, torch {torch.__version__}, at {provenance()['commit']}: see benchmarks/README.md."
    text = f"# Training throughput on a GPU\n\n{about}\n\n{pd.DataFrame(rows).to_markdown(index=False)}\n"
    (options.out / "gpu-throughput.md").write_text(text)
    draws = ["trajectories.draws=16", "trajectories.batch_size=4", f"training.batch_size={options.batch_size}"]
    params = tiny_params(*draws, "training.bf16=true", "training.condition_width=256")
    rounds = max(2, options.steps // 2)
    cells = itertools.product(KEYS, (None, "lora"))
    rows = [row for key, adapter in cells for row in compare(key, params, teacher, rounds, adapter)]
    write("gpu-step", rows, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
