"""The tiny world's images: which glyphs, which pairs are kept from training, and what an image is made of."""

import numpy as np

from splam.data import emoji


def test_only_what_32_pixels_can_show_is_kept():
    table = emoji.glyphs()
    names = {g.name for g in table}
    assert {"red apple", "dog face", "cactus", "guitar", "robot"} <= names
    assert {g.group for g in table}.isdisjoint({"flags", "symbols", "people body"})
    assert not any("1F3FB" in g.code for g in table), "a skin tone"
    assert len({g.code for g in table}) == len(table) > 400


def test_compose_is_alpha_over_a_colour():
    drawing = np.random.default_rng(0).random((28, 28, 4), np.float32)
    image = emoji.compose(drawing, "green", (1, -2)).astype(float)
    green = np.array(emoji.COLOURS["green"], float)
    assert (image[0] == green).all() and (image[:, -1] == green).all()  # the margin that the shift leaves free
    colour, alpha = drawing[5, 7, :3] * 255, drawing[5, 7, 3]
    assert np.allclose(image[2 + 1 + 5, 2 - 2 + 7], alpha * colour + (1 - alpha) * green, atol=0.51)


def test_splits_hold_what_they_say(tmp_path):
    emoji.build(tmp_path, seed=0, train_draws=2, test_draws=3, every=60)
    count = len(range(0, len(emoji.glyphs()), 60))
    train, seen, unseen = (emoji.Split.load(tmp_path / name) for name in emoji.SPLITS)
    assert (len(train), len(seen), len(unseen)) == (count * 9 * 2, count * 3, count * 3)
    colours, table = list(emoji.COLOURS), emoji.glyphs()
    assert all(table[g].unseen_colour == colours[c] for g, c in unseen.pairs())
    assert not any(table[g].unseen_colour == colours[c] for g, c in train.pairs())
    emoji.build(tmp_path / "again", seed=0, train_draws=2, test_draws=3, every=60)
    assert (emoji.Split.load(tmp_path / "again/train").images == train.images).all()
