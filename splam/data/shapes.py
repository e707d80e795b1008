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
from functools import cache
from multiprocessing import Pool
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import resvg_py
import yaml
from numpy.typing import ArrayLike
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from splam.data.images import built, to_pixels

SIZE = 32  # pixels
ASSETS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
COLOURS: dict[str, list[list[int]]] = ASSETS["colours"]  # each with its tone
SPLITS = ("train", "seen", "unseen")  # seen: new pictures of the triples that are trained on
UNSEEN_SHARE = 0.1
LEVELS = ("full", "shape", "background")  # what a caption tells
LEVEL_SHARES = (0.6, 0.2, 0.2)  # of the captions that models are trained on

RADII = (9.0, 15.0)  # pixels
MAX_TILT = 35.0  # degrees, each way
PERIOD = 7.0  # pixels of a pattern's tile, as in shapes.yaml: from stripe to stripe and from dot to dot

# What a full caption names, in this order: shape, fill, colour, background.
PARTS = (tuple(ASSETS["shapes"]), tuple(ASSETS["fills"]), tuple(COLOURS), tuple(COLOURS))
RECORD = np.dtype([("images", np.uint8, (SIZE, SIZE, 3)), ("parts", np.uint8, len(PARTS))])


class Scene(NamedTuple):
    """All that a picture shows: a word of each of PARTS; centre, radius and phase are in pixels, tilt in degrees."""

    parts: tuple[str, str, str, str]
    centre: list[float]
    radius: float
    tilt: float
    phase: list[float]


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
    return Scene((shape, fill, colour, background), centre, radius, tilt, phase)


def svg(scene: Scene) -> str:
    """The picture as an SVG document."""
    shape, fill, colour, background = scene.parts
    first, tone, behind = (f"rgb{tuple(rgb)}" for rgb in (*COLOURS[colour], COLOURS[background][0]))
    marks, outline = ASSETS["fills"][fill].format(tone=tone), ASSETS["shapes"][shape]
    colours = {"colour": first, "background": behind, "marks": marks, "outline": outline}
    return ASSETS["picture"].format(**scene._asdict(), **colours, unit=1 / scene.radius)


def render(scene: Scene) -> np.ndarray:
    """The picture: uint8 (32, 32, 3)."""
    png = resvg_py.svg_to_bytes(svg_string=svg(scene), width=SIZE, height=SIZE, skip_system_fonts=True)
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))


class Split(np.recarray):
    """Pictures, `images` uint8 (n, 32, 32, 3), and what they show, `parts` uint8 (n, 4), indices into each of PARTS."""

    def __getitems__(self, picks: list[tuple[int, str]]) -> tuple[Tensor, list[str]]:
        """Pixels (n, 3, 32, 32) and captions of rows, each with a seed for what its caption tells."""
        drawn = self[[row for row, _ in picks]]
        sources = [np.random.default_rng(list(seed.encode())) for _, seed in picks]
        levels = [source.choice(len(LEVELS), p=LEVEL_SHARES) for source in sources]
        return to_pixels(drawn.images), drawn.captions(levels)

    def captions(self, levels: ArrayLike = 0) -> list[str]:
        """The caption of every picture: full ones, or at the given level or levels, int (n,), index into LEVELS."""
        names = ([words[i] for words, i in zip(PARTS, row, strict=True)] for row in self.parts.tolist())
        chosen = np.broadcast_to(levels, len(self))
        return [caption(words, LEVELS[level]) for words, level in zip(names, chosen, strict=True)]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Open a saved split, which stays on disk (memory-mapped). Raises FileNotFoundError."""
        return np.load(built(path), mmap_mode="r").view(cls)


def make(split: str, seed: int, count: int) -> Split:
    """The first `count` pictures of one of SPLITS, drawn by two processes."""
    scenes = [scene(split, seed, index) for index in range(count)]
    parts = [[known.index(word) for known, word in zip(PARTS, shown.parts, strict=True)] for shown in scenes]
    with Pool(2) as pool:
        images = tqdm(pool.imap(render, scenes, chunksize=64), split, total=count, mininterval=2)
        return np.fromiter(zip(images, parts, strict=True), RECORD, count).view(Split)
