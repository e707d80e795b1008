"""The tiny world's images: which glyphs, which pairs are kept from training, and what an image is made of."""

import numpy as np
import pytest

from splam.data import emoji


def test_only_what_32_pixels_can_show_is_kept():
    table = emoji.glyphs()
    names = {g.name for g in table}
    assert {"red apple", "dog face", "cactus", "guitar", "robot"} <= names
    assert {g.group for g in table}.isdisjoint({"flags", "symbols", "people body"})
    assert not names & {"flag: Japan", "Japan", "man firefighter", "family", "input numbers", "no bicycles"}
    assert not any("1F3FB" in g.code for g in table), "a skin tone"
    assert len({g.code for g in table}) == len(table) > 400


def test_captions_at_three_levels():
    apple = next(g for g in emoji.glyphs() if g.name == "red apple")
    assert [apple.caption("orange", level) for level in emoji.LEVELS] == [
        "red apple on an orange background",
        "food fruit on an orange background",
        "food drink on an orange background",
    ]
    assert apple.caption("blue", "name") == "red apple on a blue background"


def test_unseen_colours_are_spread_and_fixed():
    counts = {c: sum(g.unseen_colour == c for g in emoji.glyphs()) for c in emoji.COLOURS}
    assert min(counts.values()) > 0.07 * len(emoji.glyphs()), counts
    dog = next(g for g in emoji.glyphs() if g.name == "dog face")
    assert dog.unseen_colour == emoji.Glyph(dog.code, "another name", "s", "g").unseen_colour


def test_compose_is_alpha_over_a_colour():
    rng = np.random.default_rng(0)
    drawing = rng.random((28, 28, 4), np.float32)
    image = emoji.compose(drawing, "green", (1, -2)).astype(float)
    green = np.array(emoji.COLOURS["green"], float)
    assert (image[0] == green).all() and (image[:, -1] == green).all()  # the margin that the shift leaves free
    colour, alpha = drawing[5, 7, :3] * 255, drawing[5, 7, 3]
    assert np.allclose(image[2 + 1 + 5, 2 - 2 + 7], alpha * colour + (1 - alpha) * green, atol=0.51)


def test_splits_hold_what_they_say(tmp_path):
    emoji.build(tmp_path, seed=0, train_draws=2, test_draws=3, every=60, workers=1)
    glyphs = len(range(0, len(emoji.glyphs()), 60))
    train, seen, unseen = (emoji.Split.load(tmp_path / name) for name in emoji.SPLITS)
    assert (len(train), len(seen), len(unseen)) == (glyphs * 9 * 2, glyphs * 3, glyphs * 3)
    colours, table = list(emoji.COLOURS), emoji.glyphs()
    assert all(table[g].unseen_colour == colours[c] for g, c in zip(unseen.glyph, unseen.colour, strict=True))
    assert not any(table[g].unseen_colour == colours[c] for g, c in zip(train.glyph, train.colour, strict=True))
    assert emoji.leaks(tmp_path) == []
    again = tmp_path / "again"
    emoji.build(again, seed=0, train_draws=2, test_draws=3, every=60, workers=2)
    assert (emoji.Split.load(again / "train").images == train.images).all(), "workers changed the images"


def test_bad_input_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no image split: run the data stage"):
        emoji.Split.load(tmp_path)
    with pytest.raises(ValueError, match=r"data.test_draws is 10: choose 1 to 9"):
        emoji.build(tmp_path, 0, 1, 10)
