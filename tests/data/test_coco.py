"""COCO's validation sets: found or refused as a whole, lists of captions, the protocol's images."""

import json
import shutil
from collections import defaultdict

import pytest
from PIL import Image

from splam.config import CocoData
from splam.data.coco import SIZE, coco_image, read_coco
from splam.data.images import DataError


@pytest.fixture
def settings(coco_folder):
    return lambda **changes: CocoData(folder=str(coco_folder), **changes)


def test_all_images_are_read(settings, coco_folder):
    images = read_coco(settings(), "coco30k").images
    assert len(images) == 40 and images == sorted(images)
    assert images[0] == f"{coco_folder}/val2014/COCO_val2014_000000000042.jpg"
    assert coco_image(images[0], SIZE).shape == (256, 256, 3)


def test_images_are_the_centre_square(tmp_path):
    image = Image.new("RGB", (300, 100), "red")
    image.paste((0, 255, 0), (100, 0, 200, 100))
    image.save(tmp_path / "wide.png")
    assert (coco_image(str(tmp_path / "wide.png"), 50) == (0, 255, 0)).all()  # the filter sees no red beside it


def test_seeded_draw_takes_one_caption_of_every_image_and_says_so(settings, coco_folder):
    drawn = read_coco(settings(), "coco30k")
    assert drawn.protocol == "coco30k-seeded-draw"
    assert sorted(drawn.described) == drawn.images != drawn.described
    content, captions = json.loads((coco_folder / "annotations/captions_val2014.json").read_text()), defaultdict(list)
    for entry in content["annotations"]:
        captions[f"{coco_folder}/val2014/COCO_val2014_{entry['image_id']:012d}.jpg"].append(entry["caption"].strip())
    assert all(len(captions[image]) == 2 for image in drawn.images)
    assert all(caption in captions[image] for caption, image in zip(drawn.captions, drawn.described, strict=True))
    assert drawn == read_coco(settings(), "coco30k")


def test_a_list_names_its_images(settings, tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("coco_id,prompt\n49,words of\n42,another hand\n")
    listed = read_coco(settings(captions_30k=str(path)), "coco30k")
    assert (listed.protocol, listed.captions) == ("coco30k", ["words of", "another hand"])
    assert listed.described == listed.images[1::-1]


@pytest.mark.parametrize(
    "content, message",
    [
        ("image_id,caption\n42,a dog\n7,a cat\n", "1 of 2 captions are of no image of val2014, such as 7: give"),
        ("caption\na dog\n", "image ids are whole numbers in a column image_id"),
        ("image_id,caption\n4.5,a dog\n", "'4.5'; image ids are whole numbers"),
        (None, "No such file"),
    ],
)
def test_lists_that_do_not_fit_are_errors(settings, tmp_path, content, message):
    path = tmp_path / "list.csv"
    if content:
        path.write_text(content)
    with pytest.raises(DataError, match=f"data.coco.captions_30k.*{path}.*{message}"):
        read_coco(settings(captions_30k=str(path)), "coco30k")


def test_missing_files_are_one_error_with_their_archives(coco_folder, tmp_path):
    with pytest.raises(DataError, match=r"captions_val2017.json .*No such file.*wget -P .*val2017.zip .*val2017.zip"):
        read_coco(CocoData(folder=str(tmp_path)), "coco5k")
    shutil.copytree(coco_folder / "annotations", tmp_path / "annotations")
    (tmp_path / "val2017").mkdir()
    for path in sorted((coco_folder / "val2017").glob("*.jpg"))[:12]:
        shutil.copy(path, tmp_path / "val2017")
    with pytest.raises(DataError, match=r"val2017 lacks 8 images, such as .*val2017/\d{12}.jpg"):
        read_coco(CocoData(folder=str(tmp_path)), "coco5k")
    (tmp_path / "annotations/captions_val2017.json").write_text('{"images": [')
    with pytest.raises(DataError, match="captions_val2017.json cannot be read"):
        read_coco(CocoData(folder=str(tmp_path)), "coco5k")


def test_a_broken_image_is_named(coco_folder, tmp_path):
    whole = (coco_folder / "val2014/COCO_val2014_000000000042.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cut.jpg is broken"):
        coco_image(str(tmp_path / "cut.jpg"), 64)
