"""Peak memory and images per second of distillation at Stable Diffusion 1.5's size, with random weights.

`python -m benchmarks.train_throughput` needs a GPU and writes gpu-throughput.md, of trainings as splam.distill runs
them with images encoded in every step, and gpu-step.csv, of a step against the public scripts' (benchmarks.training).
The former's last rows are the runs of sd15-night with their own batch size, for the aim that they stay below 20 GB.
Nothing is downloaded: speed and memory do not depend on what the weights are.
"""

from functools import partial
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from accelerate.utils.memory import clear_device_cache
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.compare import CAPTION, CPU, FOLDER, PROVENANCE, Row, in_turn, profile, write
from benchmarks.training import RIVALS, a_run, online, step_rows
from splam.config import Run
from splam.distill.loop import Distillation
from splam.method.schedule import Schedule
from splam.networks.teacher import TINY_MODELS, Teacher, float32_output, tiny_text_encoder

STEPS = 20  # timed, of each row
CHOICES = False, True  # whether to compile, and to checkpoint gradients
BLOCKS = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
VAE = {"sample_size": 512, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2} | BLOCKS
TRAINING = {"batch_size": 12, "learning_rate": 8e-6, "lora_rank": 64, "condition_width": 256}  # 12: the authors', a GPU
TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}


def random_teacher(device: str) -> Teacher:
    """Stable Diffusion 1.5 as to its shapes; diffusers' and transformers' defaults are 1.5's otherwise."""
    torch.manual_seed(0)
    with torch.device(device):
        unet = float32_output(UNet2DConditionModel(sample_size=64, cross_attention_dim=768))
        vae, text = AutoencoderKL(**VAE), CLIPTextModel(CLIPTextConfig(**TEXT))
    for part in (unet, vae, text):
        part.to(memory_format=torch.channels_last).eval().requires_grad_(False)
    (tokenizer, _), scheduler = tiny_text_encoder(77), DDIMScheduler.from_pretrained(TINY_MODELS / "scheduler")
    schedule = Schedule.from_alphas_cumprod(scheduler.alphas_cumprod).to(device)
    return Teacher(unet, vae, text, tokenizer, schedule, dict(scheduler.config), Path(), bf16=True)


def measure(run: Run, teacher: Teacher) -> Row:
    """One row: GB at the peak (of the GPU, over all that training allocates), and images per second."""
    training, size = run.training, teacher.image_size
    batch = torch.rand(training.batch_size, 3, size, size) * 2 - 1, [CAPTION] * training.batch_size
    clear_device_cache(garbage_collection=True)
    torch.accelerator.reset_peak_memory_stats()
    try:
        job = Distillation(run, teacher, online(batch, run, teacher))
        rate = f"{training.batch_size / in_turn({'step': partial(job.step, 0)}, STEPS).step.median():.1f}"
        peak = "not measured on a CPU" if CPU else f"{torch.accelerator.max_memory_allocated() / 1e9:.1f}"
    except torch.cuda.OutOfMemoryError:
        rate, peak = "", "out of memory"
    teacher.unet._compiled_call_impl = None  # the next training compiles it itself
    torch._dynamo.reset()
    facts = {"k": f"{run.skip}{', ME' * run.multiple_estimation}", "batch": str(training.batch_size)}
    facts |= {"compile": training.compile, "checkpointing": training.gradient_checkpointing}
    facts |= {"peak memory (GB)": peak, "images / s": rate}
    print(facts, flush=True)
    return facts


def compare(teacher: Teacher, folder: Path = FOLDER) -> None:
    """Write both files: of the first, a grid, and a micro-batch of each run of sd15-night."""
    runs, adapters = [], {"full": None, "LoRA": "lora"}
    for name, k, compiled, checkpointing in product(adapters, (20, 100), CHOICES, CHOICES):
        kept = {"compile": compiled, "gradient_checkpointing": checkpointing}
        runs.append((name, a_run("splam", k, adapters[name], **kept, **TRAINING)))
    night = profile("sd15-night", "training.gradient_accumulation_steps=1")
    runs += [(f"sd15-night, {name}", run) for name, run in night.runs.items()]
    table = pd.DataFrame([{"trained": name} | measure(run, teacher) for name, run in runs]).to_markdown(index=False)
    about = f"On {PROVENANCE['machine']}, at {PROVENANCE['commit']}: see benchmarks/README.md."
    (folder / "gpu-throughput.md").write_text(f"# Training throughput on a GPU\n\n{about}\n\n{table}\n")
    rows = []
    for (whose, method, k), adapter in product(RIVALS, adapters.values()):
        rows += step_rows(whose, a_run(method, k, adapter, **TRAINING), teacher, STEPS // 2)
    write("gpu-step", rows, folder)


if __name__ == "__main__":
    compare(random_teacher("cuda"))
