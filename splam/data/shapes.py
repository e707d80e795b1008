"""The tiny world: patterned shapes on coloured backgrounds, 32 x 32 pixels, with captions.

A picture shows one of 12 shapes with one of 4 fills, in one of 10 colours on one of the 9 others. Its centre, radius,
tilt and the phase of its pattern are free: what a caption leaves open, noise has to decide. Every picture is a pure
function of (split, seed, index), so there are as many as one likes.

A tenth of the (shape, fill, colour) triples is *unseen*: kept from the training of every model.
"""

import hashlib
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import Pool
from pathlib import Path
from typing import Self

import numpy as np
import yaml
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from splam.data.images import built, to_pixels

SIZE = 32  # pixels
ASSETS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
SHAPES: dict[str, str] = ASSETS["shapes"]  # as SVG, in the unit circle
COLOURS = {name: tuple(rgb) for name, rgb in ASSETS["colours"].items()}
FILLS = ("plain", "striped", "dotted", "checkered")
SPLITS = ("train", "seen", "unseen")  # seen: new pictures of the triples that are trained on
UNSEEN_SHARE = 0.1
LEVELS = ("full", "shape", "background")  # what a caption tells
LEVEL_SHARES = (0.6, 0.2, 0.2)  # of the captions that models are trained on

RADII = (9.0, 15.0)  # pixels
MAX_TILT = 35.0  # degrees, each way
PERIOD = 7.0  # pixels from stripe to stripe and from dot to dot; a checkered cell is half of it
TONE = 0.55  # how far a pattern's second colour is from the first towards white, or black for light colours

PARTS = (tuple(SHAPES), FILLS, tuple(COLOURS), tuple(COLOURS))  # what a full caption names, in this order


@dataclass(frozen=True)
class Scene:
    """All that a picture shows. Centre, radius and phase are in pixels, tilt in degrees."""

    shape: str
    fill: str
    colour: str
    background: str
    centre: tuple[float, float]
    radius: float
    tilt: float
    phase: tuple[float, float]

    @property
    def parts(self) -> tuple[str, str, str, str]:
        """What a full caption names: a word of each of PARTS."""
        return self.shape, self.fill, self.colour, self.background


def caption(parts: Sequence[str], level: str = "full") -> str:
    """'a striped red star on a blue background' (full), 'a red star' (shape) or 'a star on a blue background'.

    parts: shape, fill, colour, background.
    """
    shape, fill, colour, background = parts
    place = f"on {_article(background)} background"
    if level == "full":
        return f"a {fill} {colour} {shape} {place}"
    return f"{_article(colour)} {shape}" if level == "shape" else f"{_article(shape)} {place}"


def _article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def full_captions() -> list[str]:
    """Every full caption there is, 4,320 of them."""
    return [caption(parts) for parts in itertools.product(*PARTS) if parts[2] != parts[3]]


def draw_levels(rng: np.random.Generator, count: int) -> np.ndarray:
    """Levels of the captions of `count` training pictures, int (count,), by LEVEL_SHARES."""
    return rng.choice(len(LEVELS), size=count, p=LEVEL_SHARES)


@cache
def triples(split: str) -> tuple[tuple[str, str, str], ...]:
    """The (shape, fill, colour) triples of one of SPLITS: the tenth of them with the lowest hashes is unseen."""
    everything = sorted(itertools.product(*PARTS[:3]), key=lambda t: hashlib.sha256(repr(t).encode()).digest())
    unseen = round(UNSEEN_SHARE * len(everything))
    return tuple(everything[:unseen] if split == "unseen" else everything[unseen:])


def scene(split: str, seed: int, index: int) -> Scene:
    """The scene of one picture, a pure function of its arguments."""
    rng = np.random.default_rng((SPLITS.index(split), seed, index))
    known = triples(split)
    shape, fill, colour = known[rng.integers(len(known))]
    background = [c for c in COLOURS if c != colour][rng.integers(len(COLOURS) - 1)]
    radius = float(rng.uniform(*RADII))
    centre = rng.uniform(radius, SIZE - radius, 2).tolist()
    tilt = float(rng.uniform(-MAX_TILT, MAX_TILT))
    phase = rng.uniform(0, PERIOD, 2).tolist()
    return Scene(shape, fill, colour, background, tuple(centre), radius, tilt, tuple(phase))


def tone(colour: str) -> tuple[int, int, int]:
    """The second colour of a pattern: a lighter one, or of light colours a darker one."""
    rgb = np.array(COLOURS[colour], float)
    towards = 0.0 if rgb @ (0.299, 0.587, 0.114) > 140 else 255.0
    return tuple(np.rint(rgb + TONE * (towards - rgb)).astype(int).tolist())


def _pattern(scene: Scene) -> str:
    """The fill as SVG: a pattern of the colour and its tone, in pixels along the shape's own axes."""
    base, other = f"rgb{COLOURS[scene.colour]}", f"rgb{tone(scene.colour)}"
    half = PERIOD / 2
    marks = {
        "plain": "",
        "striped": f'<rect width="{PERIOD}" height="{half}" fill="{other}"/>',
        "dotted": f'<circle cx="{half}" cy="{half}" r="{0.3 * PERIOD}" fill="{other}"/>',
        "checkered": f'<path d="M0 0H{half}V{PERIOD}H{PERIOD}V{half}H0Z" fill="{other}"/>',
    }
    return (
        f'<pattern id="fill" patternUnits="userSpaceOnUse" width="{PERIOD}" height="{PERIOD}" patternTransform='
        f'"scale({1 / scene.radius}) translate({scene.phase[0]} {scene.phase[1]})">'
        f'<rect width="{PERIOD}" height="{PERIOD}" fill="{base}"/>{marks[scene.fill]}</pattern>'
    )


def svg(scene: Scene) -> str:
    """The picture as an SVG document."""
    place = f"translate({scene.centre[0]} {scene.centre[1]}) rotate({scene.tilt}) scale({scene.radius})"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIZE} {SIZE}"><defs>{_pattern(scene)}</defs>'
        f'<rect width="{SIZE}" height="{SIZE}" fill="rgb{COLOURS[scene.background]}"/>'
        f'<g transform="{place}" fill="url(#fill)" stroke="url(#fill)" stroke-width="0">{SHAPES[scene.shape]}</g></svg>'
    )


def render(scene: Scene) -> np.ndarray:
    """The picture: uint8 (32, 32, 3)."""
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_string=svg(scene), width=SIZE, height=SIZE, skip_system_fonts=True)
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))


@dataclass(frozen=True)
class Split:
    """Pictures uint8 (n, 32, 32, 3), and what they show: uint8 (n, 4), an index into each of PARTS."""

    images: np.ndarray
    parts: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice | np.ndarray) -> Self:
        return Split(self.images[rows], self.parts[rows])

    def __getitems__(self, picks: list[tuple[int, str]]) -> tuple[Tensor, list[str]]:
        """Pixels (n, 3, 32, 32) and captions of rows, each with a seed for what its caption tells."""
        part = self[np.array([row for row, _ in picks])]
        levels = [draw_levels(np.random.default_rng(list(seed.encode())), 1)[0] for _, seed in picks]
        return to_pixels(part.images), part.captions(np.array(levels))

    def captions(self, levels: np.ndarray | None = None) -> list[str]:
        """The caption of every picture: full ones, or at the given levels, int (n,), index into LEVELS."""
        levels = np.zeros(len(self), int) if levels is None else levels
        names = ([words[i] for words, i in zip(PARTS, row, strict=True)] for row in self.parts.tolist())
        return [caption(words, LEVELS[level]) for words, level in zip(names, levels, strict=True)]

    def save(self, folder: Path) -> None:
        """Write the split as .npy files into folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in vars(self).items():
            np.save(folder / f"{name}.npy", array)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Open a saved split; pictures stay on disk (memory-mapped). Raises FileNotFoundError."""
        return cls(np.load(built(folder / "images.npy"), mmap_mode="r"), np.load(folder / "parts.npy"))


def _picture(index: int, split: str, seed: int) -> tuple[np.ndarray, list[int]]:
    """One picture and its row of Split.parts, for a worker process."""
    shown = scene(split, seed, index)
    return render(shown), [known.index(word) for known, word in zip(PARTS, shown.parts, strict=True)]


def make(split: str, seed: int, count: int) -> Split:
    """The first `count` pictures of one of SPLITS, drawn by two processes."""
    with Pool(2) as pool:
        drawn = pool.imap(partial(_picture, split=split, seed=seed), range(count), chunksize=64)
        images, parts = zip(*tqdm(drawn, split, total=count, mininterval=2), strict=True)
    return Split(np.stack(images), np.array(parts, np.uint8))


def leaks(folder: Path) -> list[str]:
    """What is wrong with the splits of a built set, a sentence each."""
    train, seen, unseen = (Split.load(folder / name) for name in SPLITS)
    problems, trained = [], {image.tobytes() for image in train.images}
    if shared := {tuple(row) for row in train.parts[:, :3].tolist()} & {tuple(r) for r in unseen.parts[:, :3].tolist()}:
        problems.append(f"{len(shared)} unseen triples were trained on: rebuild the data.")
    for name, test in (("seen", seen), ("unseen", unseen)):
        if copies := sum(image.tobytes() in trained for image in test.images):
            problems.append(f"{copies} pictures of the {name} set were trained on: rebuild the data.")
    return problems
