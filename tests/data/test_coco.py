"""COCO's validation sets: found or refused as a whole, lists of captions, the protocol's images."""

import shutil

import pytest
from PIL import Image

from splam.config import CocoData
from splam.data.coco import SIZE, Coco, Prompts, coco_images, coco_prompts, load_coco
from splam.data.images import DataError


@pytest.fixture(scope="module")
def coco(coco_folder):
    return load_coco(coco_folder, "val2014")


def settings(**changes) -> CocoData:
    return CocoData(folder="coco", **changes)


def test_all_images_and_captions_are_read(coco, coco_folder):
    assert len(coco.images) == 40 and list(coco.images) == sorted(coco.images)
    assert coco.images[42] == coco_folder / "val2014" / "COCO_val2014_000000000042.jpg"
    assert all(len(texts) == 2 and texts[1] == texts[1].strip() for texts in coco.captions.values())
    assert next(coco_images(coco, SIZE)).shape == (40, 256, 256, 3)


def test_images_are_the_centre_square(tmp_path):
    image = Image.new("RGB", (300, 100), "red")
    image.paste((0, 255, 0), (100, 0, 200, 100))
    image.save(tmp_path / "wide.png")
    found = next(coco_images(Coco({1: tmp_path / "wide.png"}, {}), 50))[0]
    assert (found[:, :, 1] > 250).mean() > 0.95  # green, but for the filter's edges


def test_seeded_draw_takes_one_caption_of_every_image_and_says_so(coco):
    drawn = coco_prompts(coco, "coco30k", settings())
    assert drawn.protocol == "coco30k-seeded-draw"
    assert sorted(drawn.image_ids) == list(coco.images) != drawn.image_ids
    assert all(c in coco.captions[i] for c, i in zip(drawn.captions, drawn.image_ids, strict=True))
    assert drawn == coco_prompts(coco, "coco30k", settings())


def test_a_list_names_its_images(coco, tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("coco_id,prompt\n49,words of\n42,another hand\n")
    prompts = coco_prompts(coco, "coco30k", settings(captions_30k=str(path)))
    assert prompts == Prompts("coco30k", ["words of", "another hand"], [49, 42])


@pytest.mark.parametrize(
    "content, message",
    [
        ("image_id,caption\n42,a dog\n7,a cat\n", "1 of 2 captions are of no image of val2014, such as 7: give"),
        ("caption\na dog\n", "image ids are whole numbers in a column image_id"),
        ("image_id,caption\n4.5,a dog\n", "'4.5'; image ids are whole numbers"),
        (None, "No such file"),
    ],
)
def test_lists_that_do_not_fit_are_errors(coco, tmp_path, content, message):
    path = tmp_path / "list.csv"
    if content:
        path.write_text(content)
    with pytest.raises(DataError, match=f"data.coco.captions_30k.*{path}.*{message}"):
        coco_prompts(coco, "coco30k", settings(captions_30k=str(path)))


def test_missing_files_are_one_error_with_their_archives(coco_folder, tmp_path):
    with pytest.raises(DataError, match=r"captions_val2017.json .*No such file.*wget -P .*val2017.zip .*val2017.zip"):
        load_coco(tmp_path, "val2017")
    shutil.copytree(coco_folder / "annotations", tmp_path / "annotations")
    (tmp_path / "val2017").mkdir()
    for path in sorted((coco_folder / "val2017").glob("*.jpg"))[:12]:
        shutil.copy(path, tmp_path / "val2017")
    with pytest.raises(DataError, match=r"val2017 lacks 8 images, such as \d{12}.jpg"):
        load_coco(tmp_path, "val2017")
    (tmp_path / "annotations/captions_val2017.json").write_text('{"images": [')
    with pytest.raises(DataError, match="captions_val2017.json cannot be read"):
        load_coco(tmp_path, "val2017")


def test_a_broken_image_is_named(coco, tmp_path):
    whole = coco.images[42].read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cut.jpg is broken"):
        list(coco_images(Coco({1: tmp_path / "cut.jpg"}, {}), 64))
