"""The stream of shards: its order, exact resume, what it counts, what it refuses, and the test split."""

import io
import tarfile
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from splam.data import samples as read
from splam.data import shards
from splam.data.images import DataError, decode
from splam.data.pictures import copied_captions, copied_images, survey
from splam.data.samples import Source, Tally, decoded, is_held_out, usable
from splam.data.shards import expand_shards, read_shard
from splam.data.streams import PictureStream
from tests.data.conftest import encoded, laion_settings, same, sample, surveyed, take, write_shard


@pytest.mark.parametrize("start", [1, 13])
def test_resuming_gives_the_same_bits(laion, start, opened):
    whole = take(opened(laion(crop="random"), 4, seed=3), 18)  # more than an epoch
    assert same(take(opened(laion(crop="random"), 4, seed=3), 18 - start, start), whole[start:])


def test_resuming_passes_over_whole_shards_and_decodes_nothing(tmp_path, opened, monkeypatch):
    """Batch 12 of an epoch of 4 shards of 6 samples begins in the middle of the second epoch's first shard."""
    four = [write_shard(tmp_path / f"{i}.tar", {f"{i}-{j}": sample(i * 10 + j) for j in range(6)}) for i in range(4)]
    stream, opens, images = opened(laion_settings(*four, held_out_share=1e-9), 2, seed=3), [], []
    whole, reader = take(stream, 20), stream.source.read
    stream.source = Source(stream.source.parts, lambda part, tally: opens.append(part) or reader(part, tally))
    monkeypatch.setattr(read, "decode", lambda image, *rest: images.append(image) or decode(image, *rest))
    assert same(take(stream, 1, start=13), whole[13:14])
    assert len(opens) == 1 and len(images) == 2


def test_two_workers_resume_exactly_and_leave_torchs_source_alone(laion, opened):
    two, before = laion(workers=2, crop="random"), torch.get_rng_state()
    stream = opened(two, 4, seed=1)
    whole = take(stream, 7)
    assert torch.equal(torch.get_rng_state(), before)
    assert same(take(opened(two, 4, seed=1), 4, start=3), whole[3:])  # odd: the workers swap their parts


def test_seed_and_ranks_set_the_order(laion, opened):
    first = take(opened(laion(), 4, seed=0), 2)
    for other in (opened(laion(), 4, 1), opened(laion(), 4, 0, rank=1, ranks=2)):
        assert not same(first, take(other, 2))


def test_ranks_share_an_epoch_without_repeats(tmp_path, opened):
    four = [write_shard(tmp_path / f"{i}.tar", {f"{i}-{j}": sample(i * 10 + j) for j in range(6)}) for i in range(4)]
    settings = laion_settings(*four, held_out_share=1e-9, shuffle_buffer=1)
    captions = [c for rank in range(2) for _, batch in take(opened(settings, 4, 0, rank, 2), 3) for c in batch]
    assert sorted(captions) == sorted(str(i * 10 + j) for i in range(4) for j in range(6))


def test_png_webp_and_jpeg_are_cropped_and_resized(tmp_path, opened):
    """The left half is black, the right half red: a centre crop of the square sees both."""
    image, samples = Image.new("RGB", (40, 20)), {}
    image.paste((255, 0, 0), (20, 0, 40, 20))
    for kind, suffix in (("PNG", "png"), ("WEBP", "webp"), ("JPEG", "jpg")):
        file = io.BytesIO()
        image.save(file, kind)
        samples[suffix] = {suffix: file.getvalue(), "txt": suffix.encode()}
    shard = write_shard(tmp_path / "0.tar", samples)
    pixels, captions = take(opened(laion_settings(shard, held_out_share=1e-9), 3, seed=0), 1)[0]
    assert sorted(captions) == ["jpg", "png", "webp"]
    assert (pixels[:, 0, :, :6] < -0.8).all() and (pixels[:, 0, :, 10:] > 0.8).all()
    random = laion_settings(shard, held_out_share=1e-9, crop="random")
    assert torch.stack([p.mean() for p, _ in take(opened(random, 1, seed=0), 6)]).std() > 0.05


def test_held_out_samples_are_never_trained_on(laion, opened, tmp_path):
    held = laion(held_out_share=0.3, test_images=5)
    survey(held, tmp_path)
    captions = copied_captions(tmp_path / "held_out.tar")
    trained = {c for _, batch in take(opened(held, 8, seed=0), 30) for c in batch}
    assert len(captions) == 10 and not set(captions) & trained and len(trained) > 30
    images = list(copied_images(tmp_path / "held_out.tar", range(4, 10), 16))
    assert len(images) == 6 and images[0].shape == (16, 16, 3) and images[0].dtype == np.uint8


def test_a_survey_gives_the_same_bytes_again_and_counts_what_is_in_a_shard(laion, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        manifest = survey(laion(held_out_share=0.3, test_images=3), tmp_path / name)
    paths = [tmp_path / name / "held_out.tar" for name in ("a", "b")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    facts = list(manifest["parts"].values())
    assert [f["samples"] for f in facts] == [24, 24, 24] and sum(f["training"] + f["held_out"] for f in facts) == 71
    assert "72 samples, 0 broken images, 0 unfit sizes, 1 missing captions" in manifest["read"]
    assert len({f["sha256"] for f in facts}) == 3


def test_held_out_share_is_about_its_size_and_grows_by_inclusion():
    keys = [f"{i:09d}" for i in range(20_000)]
    small, large = ({k for k in keys if is_held_out(k, share)} for share in (0.01, 0.05))
    assert small < large and abs(len(small) - 200) < 60 and abs(len(large) - 1000) < 130


def test_too_few_held_out_images_is_an_error_that_leaves_nothing(laion, tmp_path):
    with pytest.raises(DataError, match="images are of share held_out .*72 samples.*, 60 are asked for: add pictures"):
        survey(laion(test_images=30), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_good_image_stands_in_for_a_broken_one(laion, opened):
    _, captions = take(opened(laion(held_out_share=1e-9, shuffle_buffer=1), 72, seed=0), 1)[0]
    assert "" not in captions and max(Counter(captions).values()) > 1


def test_pictures_of_no_use_are_counted_and_the_limit_names_its_key(tmp_path, opened):
    """A scan of 1 x 1 pixels that tracks its readers, and a line."""
    small = {f"s{i}": {"png": encoded(i, size=size), "txt": b"x"} for i, size in enumerate([(1, 1), (3000, 1)])}
    shard = write_shard(tmp_path / "0.tar", {**small, **{f"g{i}": sample(i) for i in range(30)}})
    settings, tally = laion_settings(shard, held_out_share=1e-9, max_broken_share=0), Tally(1)
    kept = [sample for sample in read_shard(shard, tally) if decoded(sample, 8, settings, tally) is not None]
    assert len(kept) == 30 and dict(tally.counts) == {"unfit sizes": 2}
    with pytest.raises(DataError, match=r"1 unfit sizes.*[31]x1 pixels, beyond data.smallest_side = 8, data.largest_r"):
        take(opened(settings, 32, seed=0), 1)


def test_resume_is_exact_where_whole_batches_are_broken(tmp_path, opened):
    samples = {str(i): sample(i) if i % 2 else {"jpg": b"\xff\xd8none", "txt": b"broken"} for i in range(8)}
    broken = laion_settings(write_shard(tmp_path / "0.tar", samples), max_broken_share=0.6, held_out_share=1e-9)
    whole = take(opened(broken, 1, seed=0), 12)
    assert all(caption != ["broken"] for _, caption in whole)
    for start in range(1, 12):
        assert same(take(opened(broken, 1, seed=0), 12 - start, start), whole[start:])


def test_too_many_broken_images_is_an_error_naming_shard_and_counts(tmp_path, opened):
    good = write_shard(tmp_path / "good.tar", {f"g{i}": sample(i) for i in range(20)})
    bad = write_shard(tmp_path / "bad.tar", {f"b{i}": {"jpg": b"none", "txt": b"x"} for i in range(20)})
    strict = laion_settings(good, bad, max_broken_share=0.05, held_out_share=1e-9)
    with pytest.raises(DataError, match=r"max_broken_share = 0.05 .*11 broken images.*; 11 broken images in .*bad.tar"):
        take(opened(strict, 4, seed=0), 50)


def test_an_error_in_a_worker_reaches_the_caller(tmp_path, opened):
    bad = write_shard(tmp_path / "bad.tar", {f"b{i}": {"png": b"none", "txt": b"x"} for i in range(20)})
    with pytest.raises(DataError, match=r"(?s)broken images.*in .*bad.tar"):
        take(opened(laion_settings(bad, workers=1, max_broken_share=0), 2, seed=0), 1)


@pytest.mark.parametrize("into_member", [0, 100, 1000])  # between two members, in a header, and in an image
def test_truncated_shards_are_counted_and_what_came_before_is_used(laion_folder, tmp_path, into_member, opened):
    whole = laion_folder / "00000.tar"
    with tarfile.open(whole) as tar:
        member = [m for m in tar if m.name.endswith(".jpg")][9]
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[: member.offset + into_member])
    stream = opened(laion_settings(tmp_path / "cut.tar", held_out_share=1e-9, shuffle_buffer=1), 4, seed=0)
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


def test_keys_may_have_dots_and_samples_other_pictures(tmp_path):
    """webdataset's own key ends at the first dot: 1,100 samples are one."""
    dotted = {f"photo.{i:06d}": sample(i % 250) for i in range(1100)}
    masked = {f"{i}": {**sample(i), "mask.png": encoded(0), "seg.jpg": encoded(0)} for i in range(9)}
    for name, samples in (("dotted", dotted), ("masked", masked)):
        write_shard(tmp_path / f"{name}.tar", samples)
        tally = Tally(0)
        found = [(s.key, s.caption) for s in read_shard(str(tmp_path / f"{name}.tar"), tally)]
        assert found == [(key, content["txt"].decode()) for key, content in samples.items()]
        assert not tally.faults


def test_what_is_in_a_shard_twice_or_beside_it_is_counted(tmp_path):
    """One member again, whole samples again, macOS's ._ files, and captions that are not UTF-8."""
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name in ("0.png", "0.txt", "._0.png", "0.png", "1.png", "1.txt", "0.png", "0.txt", "2.PNG", "2.txt"):
            content = {"1": b"\xef\xbb\xbfa\n b ", "2": b"caf\xe9"}.get(name[0], b"x") if "txt" in name else encoded(9)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    tally = Tally(1)
    found = [(s.key, s.caption) for s in usable(read_shard(str(tmp_path / "0.tar"), tally), tally)]
    assert found == [("0", "x"), ("1", "a b")]
    assert dict(tally.counts) == {"samples": 3, "repeated files": 3, "missing captions": 1}


def test_a_shard_that_changed_since_it_was_counted_is_an_error(tmp_path, opened):
    def write(count):
        return write_shard(tmp_path / "0.tar", {str(i): sample(i) for i in range(count)})

    settings = laion_settings(write(30), held_out_share=1e-9, max_broken_share=0.01)
    stream = opened(settings, 4, seed=0)
    write(31)
    with pytest.raises(DataError, match="31 samples to train on were read, the data stage counted 30: run the data st"):
        take(stream, 10)
    write(20)
    with pytest.warns(RuntimeWarning, match="20 samples"), pytest.raises(DataError, match="10 lost samples in .*0.tar"):
        take(stream, 10)


def test_a_training_has_the_parts_that_were_counted(tmp_path):
    first, second = (laion_settings(write_shard(tmp_path / f"{i}.tar", {"a": sample(1)})) for i in range(2))
    with pytest.raises(FileNotFoundError, match=r"manifest.json: run the data stage \(dvc repro data.dvc\) first"):
        PictureStream(first, tmp_path, 1, seed=0)
    with pytest.raises(DataError, match=r"0.tar is not there any more \(2 parts changed .*: run the data stage again"):
        PictureStream(second, surveyed(first, tmp_path), 1, seed=0)


def test_shards_that_are_of_no_use_are_named(tmp_path, opened):
    (tmp_path / "empty.tar").touch()
    with pytest.raises(DataError, match="'.*none-1.tar' matches no file"):
        opened(laion_settings(tmp_path / "none-{1..2}.tar"), 2, seed=0)
    with pytest.raises(DataError, match="empty.tar is an empty file: download it again"):
        expand_shards([str(tmp_path / "*.tar")])
    hollow = write_shard(tmp_path / "hollow.tar", {})
    with pytest.raises(DataError, match="hollow.tar holds no samples"):
        take(opened(laion_settings(hollow), 2, seed=0), 1)
    full = write_shard(tmp_path / "0.tar", {str(i): sample(i) for i in range(3)})
    with pytest.raises(DataError, match="lower data.held_out_share"):
        take(opened(laion_settings(full, held_out_share=0.9999999), 2, seed=0), 1)


def test_patterns_expand_in_order_and_urls_are_left_alone(laion_folder):
    found = expand_shards([f"{laion_folder}/0000[12].tar", "https://host.test/{00..01}.tar", f"{laion_folder}/*.tar"])
    names = [f"{laion_folder}/0000{i}.tar" for i in (1, 2)]
    assert found == [*names, "https://host.test/00.tar", "https://host.test/01.tar", f"{laion_folder}/00000.tar"]


def test_two_stars_are_folders_of_any_depth_and_a_name_may_look_like_a_pattern(tmp_path):
    paths = [tmp_path / name for name in ("0.tar", "a/1.tar", "a/b/2.tar", "c[1]/3.tar")]
    for path in paths:
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(b"1")
    assert expand_shards([f"{tmp_path}/**/*.tar"]) == sorted(map(str, paths))
    assert expand_shards([str(paths[3])]) == [str(paths[3])]


def test_paths_are_the_repositorys_wherever_one_is(laion_folder, tmp_path, monkeypatch, opened):
    monkeypatch.setattr(shards, "ROOT", laion_folder.parent)
    monkeypatch.chdir(tmp_path)
    relative = laion_settings(f"{laion_folder.name}/*.tar")
    assert expand_shards(relative.shards)[0] == f"{laion_folder.name}/00000.tar"
    assert len(take(opened(relative, 4, seed=0), 1)[0][1]) == 4


def test_shards_come_through_a_pipe(laion_folder, opened):
    piped = laion_settings(f"pipe:cat {laion_folder}/0000{{0..2}}.tar")
    direct = laion_settings(*sorted(laion_folder.glob("*.tar")))
    assert same(take(opened(piped, 4, seed=0), 3), take(opened(direct, 4, seed=0), 3))
