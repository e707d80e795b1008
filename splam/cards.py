"""The model card of an exported student: README.md of its folder, from facts that are passed in."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

METHODS = {
    "lcm": "latent consistency distillation with a fixed guidance scale (LCM)",
    "lcm_star": "latent consistency distillation over a range of guidance scales (LCM*)",
    "lcm_lora": "latent consistency distillation of a LoRA adapter (LCM-LoRA), merged into the weights here",
    "splam": "the Sub-Path Linear Approximation Model (SPLAM)",
}


@dataclass(frozen=True)
class CardFacts:
    """What a student's card says. `numbers` are rows of measured values; each must name its protocol and image count.

    guidance_scale is w of standard classifier-free guidance, eps_0 + w (eps_c - eps_0); steps are those the student
    was measured at, or is meant for.
    """

    name: str
    method: str
    teacher: str
    data: str
    guidance_scale: float
    skip: int
    multiple_estimation: bool
    training: dict[str, Any]
    pipeline: str = "StableDiffusionPipeline"
    steps: list[int] = field(default_factory=lambda: [1, 2, 4])
    licence: str | None = None
    numbers: list[dict[str, Any]] = field(default_factory=list)


def card_text(facts: CardFacts) -> str:
    """The card in Markdown. Raises ValueError for a number without its protocol."""
    for row in facts.numbers:
        if missing := {"protocol", "images"} - row.keys():
            raise ValueError(f"{facts.name}: a measured row lacks {', '.join(sorted(missing))}: {row}")
    estimation = "multiple estimation" if facts.multiple_estimation else "one solver step"
    parts = [
        _front_matter(facts),
        f"# {facts.name}",
        f"A few-step text-to-image model, made from `{facts.teacher}` by {METHODS[facts.method]}.",
        "## Facts",
        _table(
            {
                "teacher": f"`{facts.teacher}`",
                "training data": facts.data,
                "guidance scale w": f"{facts.guidance_scale:g}" + (" (chosen)" if facts.method == "lcm_star" else ""),
                "skipping step k": f"{facts.skip}, {estimation}",
                "steps": ", ".join(map(str, facts.steps)),
                **{key: str(value) for key, value in facts.training.items()},
            }
        ),
        "w is that of standard classifier-free guidance, eps_0 + w (eps_c - eps_0)"
        + ("." if facts.method == "lcm_star" else ", and is distilled in: sample with `guidance_scale=1`."),
        "## Use",
        _usage(facts),
        "## Measured",
        _numbers(facts.numbers),
        "## Licence",
        facts.licence or "Not stated. A student is a derivative of its teacher: the teacher's licence applies.",
    ]
    return "\n\n".join(parts) + "\n"


def write_card(folder: Path, facts: CardFacts) -> Path:
    """Write folder/README.md; returns its path."""
    path = folder / "README.md"
    path.write_text(card_text(facts))
    return path


def _front_matter(facts: CardFacts) -> str:
    lines = ["library_name: diffusers", "pipeline_tag: text-to-image", f"base_model: {facts.teacher}"]
    return "\n".join(["---", *lines, f"tags: [{facts.method}, few-step, distillation]", "---"])


def _usage(facts: CardFacts) -> str:
    scale = facts.guidance_scale if facts.method == "lcm_star" else 1
    return f"""```python
import torch
from diffusers import {facts.pipeline}

pipeline = {facts.pipeline}.from_pretrained("path/to/this/folder")
image = pipeline(
    "a caption",
    num_inference_steps={max(facts.steps)},
    guidance_scale={scale:g},
    generator=torch.Generator().manual_seed(0),
).images[0]
```"""


def _table(rows: dict[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])


def _numbers(rows: list[dict[str, Any]]) -> str:
    """Measured rows as a table whose columns are all their keys, in the order they first appear."""
    if not rows:
        return "Nothing has been measured of these weights."
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [" | ".join(str(row.get(column, "")) for column in columns) for row in rows]
    return "\n".join(f"| {line} |" for line in [" | ".join(columns), " | ".join(["---"] * len(columns)), *lines])
