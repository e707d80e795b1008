"""Pictures in shards: the order of training, exact resume, what is counted, what is refused, and the test split."""

import tarfile
from collections import Counter

import pytest
import torch
from PIL import Image

from splam.data import samples, shards
from splam.data.images import DataError, decode
from splam.data.pictures import Pictures, survey
from splam.data.samples import Tally, is_held_out
from splam.data.shards import expand_shards, read_shard
from splam.data.streams import training_images
from tests.data.conftest import encode, encoded, laion_settings, same, sample, surveyed, take, write_shard
from tests.standins.sd import write_tar


@pytest.mark.parametrize("start", [1, 13, 40])
def test_a_training_that_goes_on_reads_only_what_comes_and_gets_the_same_bits(laion, start, opened, monkeypatch):
    whole, read = take(opened(laion(crop="random"), 4, seed=3), start + 3), []  # an epoch has 16 batches
    stream = opened(laion(crop="random"), 4, seed=3)
    monkeypatch.setattr(samples, "decode", lambda image, *rest: read.append(image) or decode(image, *rest))
    assert same(take(stream, 3, start), whole[start:]) and len(read) <= 3 * 4 + 1  # one is broken


def test_two_workers_give_the_bits_of_none_and_leave_torchs_source_alone(laion, opened):
    before = torch.get_rng_state()
    ahead = take(opened(laion(workers=2, crop="random"), 4, seed=1), 3, start=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert same(ahead, take(opened(laion(crop="random"), 4, seed=1), 6)[3:])


def test_png_webp_and_jpeg_are_read_and_a_random_crop_moves(tmp_path, opened):
    """The left half is black, the right half red: a crop's mean tells where it lies."""
    image = Image.new("RGB", (40, 20))
    image.paste((255, 0, 0), (20, 0, 40, 20))
    kinds = {"png": "PNG", "webp": "WEBP", "jpg": "JPEG"}
    files = {end: {end: encode(image, kind), "txt": end.encode()} for end, kind in kinds.items()}
    settings = laion_settings(write_shard(tmp_path / "0.tar", files), held_out_share=1e-9, crop="random")
    drawn = take(opened(settings, 3, seed=0), 2)
    assert sorted(drawn[0][1]) == sorted(kinds) and torch.cat([p for p, _ in drawn]).mean((1, 2, 3)).std() > 0.05


def test_held_out_share_is_about_its_size_and_grows_by_inclusion():
    keys = [f"{i:09d}" for i in range(20_000)]
    small, large = ({k for k in keys if is_held_out(k, share)} for share in (0.01, 0.05))
    assert small < large and abs(len(small) - 200) < 60 and abs(len(large) - 1000) < 130


def test_held_out_samples_are_never_trained_on_and_counted(laion, opened, tmp_path):
    held = laion(held_out_share=0.3, test_images=5)
    facts, kept = survey(held, tmp_path), Pictures(held, tmp_path, "held_out")
    captions = {kept.sample(row).caption for row in range(len(kept))}
    trained = {text for _, batch in take(opened(held, 8, seed=0), 30) for text in batch}
    assert len(captions) > 9 and not captions & trained and len(captions | trained) == 70
    assert kept.image(4, 16).shape == (16, 16, 3)
    assert facts["read"] == "72 samples, 1 broken images, 1 missing captions"
    assert facts["training"] + facts["held_out"] == 70 and sum(facts["faults"].values()) == 2


def test_a_test_set_has_no_broken_picture(tmp_path):
    """Reading its dimensions does not tell a picture that is cut from a whole one; what is drawn must be whole."""
    cut = {str(i): sample(i) if i % 2 else {"png": encoded(i)[:-30], "txt": b"cut"} for i in range(40)}
    settings = laion_settings(write_shard(tmp_path / "0.tar", cut), held_out_share=0.5, test_images=3)
    survey(settings.model_copy(update={"max_broken_share": 0.2}), tmp_path)
    kept = Pictures(settings, tmp_path, "held_out")
    assert all(kept.image(row, 8) is not None and kept.sample(row).caption != "cut" for row in range(6))


def test_too_few_held_out_images_is_an_error_that_leaves_nothing(laion, tmp_path):
    with pytest.raises(DataError, match="images are of share held_out .*72 samples.*, 60 are needed: add pictures"):
        survey(laion(test_images=30), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_next_picture_stands_in_for_a_broken_one(tmp_path, opened):
    cut = {str(i): {"png": encoded(i)[: -30 if i == 2 else None], "txt": str(i).encode()} for i in range(9)}
    stream = opened(laion_settings(write_shard(tmp_path / "0.tar", cut), held_out_share=1e-9), 9, seed=0)
    for pixels, captions in take(stream, 3):
        shades = ((pixels[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
        assert shades == [int(caption) for caption in captions]
        assert Counter(captions) == Counter([*"013345678"])


def test_pictures_of_no_use_are_counted_and_the_limit_names_its_key(tmp_path):
    """A scan of 1 x 1 pixels that tracks its readers, and a line."""
    small = {f"s{i}": {"png": encoded(i, size=size), "txt": b"x"} for i, size in enumerate([(1, 1), (3000, 1)])}
    shard = write_shard(tmp_path / "0.tar", {**small, **{f"g{i}": sample(i) for i in range(30)}})
    settings = laion_settings(shard, held_out_share=1e-9)
    facts = survey(settings.model_copy(update={"test_images": 0}), tmp_path)
    assert facts["training"] == 30 and facts["faults"] == {f"{shard}: unfit sizes": 2}
    with pytest.raises(DataError, match=r"1 unfit sizes.*[31]x1 pixels, beyond data.smallest_side = 8, data.largest_r"):
        survey(settings.model_copy(update={"max_broken_share": 0}), tmp_path)


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_broken_images_is_an_error_naming_shard_and_counts(tmp_path, opened, workers):
    """Those that only decoding shows are counted while training, in a worker too."""
    good = write_shard(tmp_path / "good.tar", {f"g{i}": sample(i) for i in range(20)})
    cut = {f"b{i}": {"png": encoded(i)[:-30], "txt": b"x"} for i in range(20)}
    settings = laion_settings(good, write_shard(tmp_path / "bad.tar", cut), held_out_share=1e-9, max_broken_share=0.05)
    message = r"(?s)max_broken_share = 0.05 .*11 broken images.*; 11 broken images in .*bad.tar"
    with pytest.raises(DataError, match=message):
        take(opened(settings.model_copy(update={"workers": workers}), 4, seed=0), 50)
    none = {f"b{i}": {"jpg": b"none", "txt": b"x"} for i in range(20)}
    with pytest.raises(DataError, match=r"11 broken images in .*bad.tar"):
        opened(laion_settings(good, write_shard(tmp_path / "bad.tar", none), max_broken_share=0.05), 4, seed=0)


@pytest.mark.parametrize("into_member", [0, 100, 1000])  # between two members, in a header, and in an image
def test_truncated_shards_are_counted_and_what_came_before_is_used(laion_folder, tmp_path, into_member, opened):
    whole = laion_folder / "00000.tar"
    with tarfile.open(whole) as tar:
        member = [m for m in tar if m.name.endswith(".jpg")][9]
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[: member.offset + into_member])
    stream = opened(laion_settings(tmp_path / "cut.tar", held_out_share=1e-9), 4, seed=0)
    assert len({caption for _, batch in take(stream, 12) for caption in batch}) == 9
    with pytest.raises(DataError, match=r"1 truncated shards in .*cut.tar"):
        opened(laion_settings(tmp_path / "cut.tar", max_broken_share=0), 4, seed=0)


def test_a_truncated_shard_has_lost_what_the_others_hold(tmp_path):
    """One of them is a problem of one sample to no limit: it is counted by its samples."""
    whole = write_shard(tmp_path / "whole.tar", {str(i): sample(i % 250) for i in range(400)})
    cut = (tmp_path / "whole.tar").read_bytes()[:20_000]
    (tmp_path / "cut.tar").write_bytes(cut)
    with pytest.raises(DataError, match=r"39\d lost samples in .*cut.tar.*it has \d samples, the largest 400"):
        surveyed(laion_settings(whole, tmp_path / "cut.tar", max_broken_share=0.1), tmp_path)


def test_keys_may_have_dots(tmp_path):
    """webdataset's own key ends at the first dot: 1,100 samples are one."""
    path = write_shard(tmp_path / "0.tar", {f"photo.{i:06d}": sample(i % 250) for i in range(1100)})
    found = [(s.key, s.caption) for s in read_shard(path, Tally(laion_settings(max_broken_share=0)))]
    assert found == [(f"photo.{i:06d}", str(i % 250)) for i in range(1100)]


@pytest.mark.parametrize("damage", ["second archive", "damaged header"])
def test_what_follows_the_end_of_a_shard_is_not_passed_over(tmp_path, damage):
    """tarfile stops at either without a word."""
    path = write_shard(tmp_path / "0.tar", {str(i): sample(i) for i in range(9)})
    content = bytearray((tmp_path / "0.tar").read_bytes())
    with tarfile.open(path) as tar:
        content[tar.getmembers()[10].offset] ^= 1
    (tmp_path / "0.tar").write_bytes(content if "header" in damage else 2 * (tmp_path / "0.tar").read_bytes())
    with pytest.raises(DataError, match="0.tar: ReadError: more follows its end"):
        list(read_shard(path, Tally(laion_settings(max_broken_share=0))))


def test_what_is_in_a_shard_twice_or_beside_it_is_counted(tmp_path):
    """A sample again, macOS's ._ files, and captions that are not UTF-8."""
    names = ("0.png", "0.txt", "._0.png", "1.png", "1.txt", "0.png", "0.txt", "2.PNG", "2.txt")
    texts = {"1": b"\xef\xbb\xbfa\n b ", "2": b"caf\xe9"}
    contents = (texts.get(name[0], b"x") if "txt" in name else encoded(9) for name in names)
    write_tar(tmp_path / "0.tar", zip(names, contents, strict=True))
    tally = Tally(laion_settings(max_broken_share=1))
    found = [(s.key, s.caption) for s in read_shard(str(tmp_path / "0.tar"), tally)]
    assert found == [("0", "x"), ("1", "a b"), ("2", "")] and str(tally) == "0 samples, 1 repeated samples"


def test_files_that_are_gone_since_they_were_surveyed_are_an_error(tmp_path):
    settings = laion_settings(write_shard(tmp_path / "0.tar", {str(i): sample(i) for i in range(30)}))
    with pytest.raises(FileNotFoundError, match=r"samples.db: run the data stage \(dvc repro data.dvc\) first"):
        training_images(settings, tmp_path)
    surveyed(settings, tmp_path)
    (tmp_path / "0.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"0.tar"):
        training_images(settings, tmp_path).image(0, 8)


def test_shards_that_are_of_no_use_are_named(tmp_path, opened):
    with pytest.raises(DataError, match="'.*none-1.tar' matches no file: .*; so with 1 more"):
        opened(laion_settings(tmp_path / "none-{1..2}.tar"), 2, seed=0)
    for url in ("https://host.test/00.tar", "pipe:cat 0.tar"):
        with pytest.raises(DataError, match=f"'{url}' is no local file: download the shards"):
            expand_shards([url])
    write_shard(tmp_path / "hollow.tar", {})
    (tmp_path / "empty.tar").touch()
    for name in ("hollow", "empty"):
        with pytest.raises(DataError, match=f"{name}.tar holds no samples"):
            opened(laion_settings(tmp_path / f"{name}.tar"), 2, seed=0)
    full = write_shard(tmp_path / "0.tar", {str(i): sample(i) for i in range(3)})
    with pytest.raises(DataError, match="0 images are of share training .*change data.held_out_share"):
        opened(laion_settings(full, held_out_share=0.9999999), 2, seed=0)


def test_patterns_expand_in_order_and_a_file_is_read_once(laion_folder, tmp_path):
    (tmp_path / "link.tar").symlink_to(laion_folder / "00000.tar")
    found = expand_shards([f"{laion_folder}/0000[12].tar", f"{laion_folder}/0000{{0..2}}.tar"])
    assert found == expand_shards([*found, f"{laion_folder}/./*.tar", f"{tmp_path}/*.tar"])
    assert found == [f"{laion_folder}/0000{i}.tar" for i in (1, 2, 0)]


def test_two_stars_are_folders_of_any_depth_and_a_name_may_look_like_a_pattern(tmp_path):
    paths = [tmp_path / name for name in ("0.tar", "a/1.tar", "a/b/2.tar", "c[1]/3.tar")]
    for path in paths:
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(b"1")
    assert expand_shards([f"{tmp_path}/**/*.tar"]) == sorted(map(str, paths))
    assert expand_shards([str(paths[3])]) == [str(paths[3])]


def test_paths_are_the_repositorys_wherever_one_is(laion_folder, tmp_path, monkeypatch, opened):
    for module in (samples, shards):
        monkeypatch.setattr(module, "ROOT", laion_folder.parent)
    monkeypatch.chdir(tmp_path)
    relative = laion_settings(f"{laion_folder.name}/*.tar")
    assert expand_shards(relative.shards)[0] == f"{laion_folder.name}/00000.tar"
    assert len(take(opened(relative, 4, seed=0), 1)[0][1]) == 4
