"""A page to play with: what the teacher, LCM and SPLAM draw of a caption, side by side, and how long each takes.

`make play` opens it on what `make repro` has left in build/, or else on the evidence's students, which are shipped. It
asks no other machine for anything and tells none.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}  # before gradio is imported

import gradio  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torch import nn  # noqa: E402

from splam.config import ROOT, Params, Run, load_params  # noqa: E402
from splam.data.shapes import PARTS  # noqa: E402
from splam.measure.draw import Draw, baseline_draw, student_draw  # noqa: E402
from splam.method.sampling import consistency_times, generators, sample_consistency  # noqa: E402
from splam.method.subpath import predicted_x0  # noqa: E402
from splam.networks.student import load_unet, published_network  # noqa: E402
from splam.networks.teacher import Teacher, assemble_teacher, open_teacher  # noqa: E402

TEACHER = ROOT / "build/teacher"
STUDENTS = ROOT / "build/runs"  # a folder for each run, with its pipeline in it
SHIPPED = ROOT / "models/students"  # a UNet for each run of evidence/params.yaml
METHODS = {"lcm": "LCM", "splam": "SPLAM"}
GUESSES = consistency_times(4)  # the times of the strip
SIDE = 256  # pixels: smaller pictures are enlarged, pixel by pixel


def find_students(params: Params, finished: Iterable[str]) -> dict[float, dict[str, Run]]:
    """The guidance scales w at which both methods have a finished student, with the one of each trained longest."""
    found, shown = {}, (params.pictures.lcm, params.pictures.splam)
    runs = [params.runs[name] for name in finished if name in params.runs]
    for run in sorted(runs, key=lambda run: (run.training.iterations, run.name in shown)):
        if run.method in METHODS and not run.adapter:
            found.setdefault(run.guidance_scale, {})[run.method] = run
    return {w: runs for w, runs in sorted(found.items()) if len(runs) == len(METHODS)}


def open_students(scratch: Path) -> tuple[Params, Teacher, dict[str, Path]]:
    """Parameters, teacher and the UNets of what there is to play with; scratch: for a teacher beside shipped students.

    Raises FileNotFoundError.
    """
    own = {path.parts[-3]: path for path in STUDENTS.glob("*/pipeline/unet")}
    if (TEACHER / "model_index.json").is_file() and find_students(params := load_params(), own):
        return params, open_teacher(params, TEACHER), own
    params, own = load_params(ROOT / "evidence/params.yaml"), {path.name: path for path in SHIPPED.glob("*/")}
    if not find_students(params, own):
        raise FileNotFoundError("There is no student of LCM and SPLAM at one w in build/ yet: run `make repro` first.")
    assemble_teacher(params.teacher.source, scratch)
    return params, open_teacher(params, scratch), own


def row(images: np.ndarray) -> Image.Image:
    """Images uint8 (n, h, w, 3) beside one another, each at least SIDE pixels high."""
    picture = Image.fromarray(np.hstack(images))
    factor = max(1, SIDE // picture.height)
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def timed(draw: Draw, caption: str, seed: int, steps: int, name: str):
    """One picture, labelled with its steps and seconds."""
    start = time.perf_counter()
    image = row(draw([caption], [seed], steps))
    seconds = time.perf_counter() - start
    return gradio.update(value=image, label=f"{name}, {steps} step{'s' * (steps > 1)}: {seconds:.2f} s")


@torch.no_grad()
def guesses(teacher: Teacher, unet: nn.Module, run: Run, caption: str, seed: int) -> Image.Image:
    """What the student takes the clean picture for, at each time of a drawing in four steps."""
    network, schedule, kept = published_network(unet, teacher.embed([caption]), run, teacher), teacher.schedule, []

    def watched(z, sigma, t, gamma):
        epsilon = network(z, sigma, t, gamma)
        kept.append(predicted_x0(z, epsilon, schedule.alpha(t), sigma))  # Eq. 14
        return epsilon

    sample_consistency(watched, generators([seed]), teacher.latent_shape, len(GUESSES), schedule)
    return row(teacher.decode(torch.cat(kept)).numpy())


def player(params: Params, teacher: Teacher, folders: dict[str, Path]) -> tuple[list[float], Callable]:
    """The guidance scales to choose from, and what is done when a caption is given."""
    students = find_students(params, folders)
    names = [run.name for runs in students.values() for run in runs.values()]
    unets = {name: load_unet(folders[name], teacher.unet) for name in names}
    long = params.evaluation.teacher_steps

    def play(caption: str, steps: int, w: float, seed: float):
        seed, runs = int(seed), [(METHODS[method], run) for method, run in sorted(students[w].items())]
        drawn = [timed(baseline_draw(teacher, "ddim", w), caption, seed, long, "Teacher")]
        drawn += [timed(student_draw(teacher, unets[r.name], r), caption, seed, int(steps), name) for name, r in runs]
        return [*drawn, *(guesses(teacher, unets[run.name], run, caption, seed) for _, run in runs)]

    play(params.pictures.prompts[0], 1, min(students), 0)  # the first call of a network takes longer
    return list(students), play


def page(params: Params, scales: list[float], play: Callable) -> gradio.Blocks:
    """The page: what is asked for above, three pictures beside one another, and the two strips."""
    examples, shown = params.pictures.prompts, {"interactive": False, "buttons": ["fullscreen", "download"]}
    with gradio.Blocks(title="SPLAM", analytics_enabled=False) as blocks:
        gradio.Markdown("# SPLAM\nOne caption and one noise, drawn by the teacher and by two of its students.")
        with gradio.Row():
            caption = gradio.Textbox(examples[0], label="Caption", scale=3)
            steps = gradio.Radio([1, 2, 4], value=4, label="Steps of the students")
            w = gradio.Radio(
                [(f"{scale:g}", scale) for scale in scales], value=scales[0], label="Guidance scale w of the students"
            )
            seed = gradio.Number(0, label="Seed", precision=0, minimum=0)
        if params.data.kind == "shapes":
            shapes, fills, colours, _ = (", ".join(words) for words in PARTS)
            gradio.Markdown(f"The world's words. Shapes: {shapes}. Fills: {fills}. Colours: {colours}.")
        button = gradio.Button("Draw", variant="primary")
        with gradio.Row():
            pictures = [gradio.Image(label=name, **shown) for name in ("Teacher", *METHODS.values())]
        at = ", ".join(map(str, GUESSES))
        strips = [
            gradio.Image(label=f"{name}'s guess of the clean picture at t = {at}", **shown) for name in METHODS.values()
        ]
        gradio.Examples([[example] for example in examples], caption, label="Captions")
        gradio.on([button.click, caption.submit], play, [caption, steps, w, seed], [*pictures, *strips])
    return blocks


def main() -> None:
    """Open the page, or say what is missing."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            params, teacher, folders = open_students(Path(scratch))
        except FileNotFoundError as error:
            sys.exit(str(error))
    page(params, *player(params, teacher, folders)).launch(footer_links=[])


if __name__ == "__main__":
    main()
