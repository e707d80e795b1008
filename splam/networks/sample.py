"""Draw with a student: its folder, opened by stock diffusers with LCMScheduler, and captions of your own.

python -m splam.networks.sample --model build/runs/splam-w3-k100-me/pipeline "a plain purple ring" --out ring.png
"""

import argparse
import io
import itertools
from pathlib import Path

from PIL import Image

from splam.networks.pipelines import draw_images, open_any
from splam.networks.teacher import default_device


def check(options: argparse.Namespace) -> None:
    """Raise ValueError for what would otherwise fail after the drawing, or draw nonsense."""
    if not all(prompt.strip() for prompt in options.prompts):
        raise ValueError("a prompt is empty: say what to draw")
    if not all(0 <= seed < 2**63 for seed in options.seed):
        raise ValueError(f"--seed {' '.join(map(str, options.seed))}: seeds are from 0 to 2^63 - 1")
    try:
        Image.new("RGB", (8, 8)).save(io.BytesIO(), Image.registered_extensions()[options.out.suffix.lower()])
    except (KeyError, OSError):
        raise ValueError(f"--out {options.out}: no image of this type can be written; name it like x.png") from None


def main(arguments: list[str] | None = None) -> None:
    """The command line; a mistake ends it before anything is drawn."""
    parser = argparse.ArgumentParser("python -m splam.networks.sample", description="Draw prompts with a student.")
    parser.add_argument("prompts", nargs="+", metavar="prompt", help="what to draw")
    parser.add_argument("--model", type=Path, required=True, help="a student's folder: build/runs/RUN/pipeline")
    parser.add_argument("--steps", type=int, default=4, choices=range(1, 51), metavar="1..50", help="(%(default)s)")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="of the noise; one image for each (0)")
    parser.add_argument(
        "--guidance", type=float, default=1.0, help="w for LCM* students; in others it is distilled (1)"
    )
    parser.add_argument("--out", type=Path, default=Path("sample.png"), help="the image to write (%(default)s)")
    options = parser.parse_args(arguments)
    try:
        check(options)
        pipeline = open_any(options.model, scheduler="LCMScheduler", device=default_device())
    except (OSError, ValueError) as error:
        parser.error(str(error))
    out, pairs = options.out, list(itertools.product(enumerate(options.prompts, 1), options.seed))
    out.parent.mkdir(parents=True, exist_ok=True)
    for (number, prompt), seed in pairs:
        path = out if len(pairs) == 1 else out.with_name(f"{out.stem}-{number}-s{seed}{out.suffix}")
        Image.fromarray(draw_images(pipeline, [prompt], [seed], options.steps, options.guidance)[0]).save(path)
        print(path)


if __name__ == "__main__":
    main()
