"""Draw with a student: its folder, opened by stock diffusers with LCMScheduler, and captions of your own.

python -m splam.sample --model build/runs/splam-w3-k100-me-s0/pipeline "octopus on a green background" --out x.png
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from splam.models import default_device
from splam.pipelines import draw_images, open_any


def student(folder: Path):
    """A student's pipeline, on the GPU where there is one. Raises FileNotFoundError where there is none."""
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(
            f"{folder} is no student's folder (no model_index.json in it): "
            "the distill stage writes them as build/runs/RUN/pipeline"
        )
    return open_any(str(folder), scheduler="LCMScheduler", device=default_device())


def out_paths(out: Path, prompts: int, seeds: Sequence[int]) -> list[Path]:
    """One file for each prompt and seed: `out` itself for a single image, else out-1-s0.png, out-1-s1.png, ..."""
    if prompts * len(seeds) == 1:
        return [out]
    pairs = itertools.product(range(1, prompts + 1), seeds)
    return [out.with_name(f"{out.stem}-{number}-s{seed}{out.suffix}") for number, seed in pairs]


def sample(
    folder: Path, prompts: list[str], seeds: list[int], steps: int, guidance_scale: float, out: Path
) -> list[Path]:
    """Draw every prompt from every seed's noise and write the images; returns their paths.

    Raises ValueError for an empty prompt or a file type that is none of an image's, before anything is drawn.
    """
    if empty := [i for i, prompt in enumerate(prompts, 1) if not prompt.strip()]:
        raise ValueError(f"prompt {empty[0]} is empty: say what to draw")
    if out.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"--out {out} has no image's file type: name it like x.png")
    pipeline, paths = student(folder), out_paths(out, len(prompts), seeds)
    out.parent.mkdir(parents=True, exist_ok=True)
    for path, (prompt, seed) in zip(paths, itertools.product(prompts, seeds), strict=True):
        Image.fromarray(draw_images(pipeline, [prompt], [seed], steps, guidance_scale)[0]).save(path)
    return paths


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m splam.sample", description="Draw prompts with a distilled student, in a few steps."
    )
    parser.add_argument("prompts", nargs="+", metavar="prompt", help="what to draw; several make several images")
    parser.add_argument("--model", type=Path, required=True, help="a student's folder: build/runs/RUN/pipeline")
    parser.add_argument("--steps", type=int, default=4, choices=range(1, 51), metavar="1..50", help="(%(default)s)")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="of the noise; one image for each (0)")
    guidance = "1 for students, in which it is distilled; an LCM* student takes its w here (%(default)s)"
    parser.add_argument("--guidance", type=float, default=1.0, help=guidance)
    parser.add_argument("--out", type=Path, default=Path("sample.png"), help="the image to write (%(default)s)")
    options = parser.parse_args(arguments)
    try:
        drawn = (options.model, options.prompts, options.seed, options.steps, options.guidance, options.out)
        paths = sample(*drawn)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(map(str, paths)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
