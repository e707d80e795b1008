"""The stream of shards: its order, exact resume, what it counts, what it refuses, and the test split."""

import io
import json
import tarfile
from collections import Counter

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from splam.data import shards
from splam.data.images import DataError
from splam.data.shards import (
    LaionStream,
    expand_shards,
    held_out_captions,
    held_out_images,
    is_held_out,
    write_held_out,
)
from tests.data.conftest import encoded, laion_settings, same, sample, take, write_shard


@pytest.mark.parametrize("start", [1, 13])
def test_resuming_gives_the_same_bits(laion, start):
    whole = take(LaionStream(laion(crop="random"), 4, seed=3), 18)  # more than an epoch
    assert same(take(LaionStream(laion(crop="random"), 4, seed=3), 18 - start, start), whole[start:])


def test_resuming_decodes_nothing_that_was_given(laion, monkeypatch):
    seen = []

    def counted(data, size, place, fit):
        seen.append(data)
        return np.zeros((size, size, 3), "uint8")

    monkeypatch.setattr(shards, "decode", counted)
    take(LaionStream(laion(), 4, seed=3), 1, start=12)
    assert len(seen) == 4


def test_two_workers_resume_exactly_and_leave_torchs_source_alone(laion):
    two, before = laion(workers=2, crop="random"), torch.get_rng_state()
    stream = LaionStream(two, 4, seed=1)
    whole = take(stream, 7)
    assert torch.equal(torch.get_rng_state(), before)
    assert same(take(LaionStream(two, 4, seed=1), 4, start=3), whole[3:])  # odd: the workers swap their parts
    assert stream.counts["samples"] >= 28


def test_seed_and_ranks_set_the_order(laion):
    first = take(LaionStream(laion(), 4, seed=0), 2)
    for other in (LaionStream(laion(), 4, 1), LaionStream(laion(), 4, 0, rank=0, ranks=2)):
        assert not same(first, take(other, 2))


def test_ranks_share_an_epoch_without_repeats(tmp_path):
    four = [write_shard(tmp_path / f"{i}.tar", {f"{i}-{j}": sample(i * 10 + j) for j in range(6)}) for i in range(4)]
    settings = laion_settings(*four, held_out_share=1e-9, shuffle_buffer=1)
    captions = [c for rank in range(2) for _, batch in take(LaionStream(settings, 4, 0, rank, 2), 3) for c in batch]
    assert sorted(captions) == sorted(str(i * 10 + j) for i in range(4) for j in range(6))


def test_png_webp_and_jpeg_are_cropped_and_resized(tmp_path):
    """The left half is black, the right half red: a centre crop of the square sees both."""
    image, samples = Image.new("RGB", (40, 20)), {}
    image.paste((255, 0, 0), (20, 0, 40, 20))
    for kind, suffix in (("PNG", "png"), ("WEBP", "webp"), ("JPEG", "jpg")):
        file = io.BytesIO()
        image.save(file, kind)
        samples[suffix] = {suffix: file.getvalue(), "txt": suffix.encode()}
    shard = write_shard(tmp_path / "0.tar", samples)
    pixels, captions = take(LaionStream(laion_settings(shard, held_out_share=1e-9), 3, seed=0), 1)[0]
    assert sorted(captions) == ["jpg", "png", "webp"]
    assert (pixels[:, 0, :, :6] < -0.8).all() and (pixels[:, 0, :, 10:] > 0.8).all()
    random = laion_settings(shard, held_out_share=1e-9, crop="random")
    assert torch.stack([p.mean() for p, _ in take(LaionStream(random, 1, seed=0), 6)]).std() > 0.05


def test_held_out_samples_are_never_trained_on(laion, tmp_path):
    held = laion(held_out_share=0.3)
    write_held_out(held, 10, tmp_path / "seen.tar")
    captions = held_out_captions(tmp_path / "seen.tar")
    trained = {c for _, batch in take(LaionStream(held, 8, seed=0), 30) for c in batch}
    assert len(captions) == 10 and not set(captions) & trained and len(trained) > 30
    images = list(held_out_images(tmp_path / "seen.tar", range(4, 10), 16))
    assert len(images) == 6 and images[0].shape == (16, 16, 3) and images[0].dtype == np.uint8


def test_held_out_shard_is_stable_bytes_and_names_its_origin(laion, tmp_path):
    for name in ("a.tar", "b.tar"):
        write_held_out(laion(held_out_share=0.3), 6, tmp_path / name)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False) as dataset:
        origin = [json.loads(content["json"]) for content in dataset]
    assert all(is_held_out(o["key"], 0.3) and o["shard"] == f"{o['key'][:5]}.tar" for o in origin)


def test_held_out_share_is_about_its_size_and_grows_by_inclusion():
    keys = [f"{i:09d}" for i in range(20_000)]
    small, large = ({k for k in keys if is_held_out(k, share)} for share in (0.01, 0.05))
    assert small < large and abs(len(small) - 200) < 60 and abs(len(large) - 1000) < 130


def test_too_few_held_out_images_is_an_error_that_leaves_nothing(laion, tmp_path):
    with pytest.raises(DataError, match="3 shards hold .* held-out images .*raise data.held_out_share"):
        write_held_out(laion(), 60, tmp_path / "seen.tar")
    assert not list(tmp_path.iterdir())


def test_broken_and_captionless_samples_are_counted_and_left_out(laion):
    stream = LaionStream(laion(held_out_share=1e-9, shuffle_buffer=1), 72, seed=0)
    _, captions = take(stream, 1)[0]
    assert [stream.counts[kind] for kind in shards.PROBLEMS] == [1, 0, 1, 0]
    assert stream.counts["samples"] >= 72 and "" not in captions
    assert max(Counter(captions).values()) > 1  # a good image stands in for the broken one


def test_pictures_of_no_use_are_counted_and_the_limit_names_its_key(tmp_path):
    """A scan of 1 x 1 pixels that tracks its readers, and a line."""
    small = {f"s{i}": {"png": encoded(i, size=size), "txt": b"x"} for i, size in enumerate([(1, 1), (3000, 1)])}
    shard = write_shard(tmp_path / "0.tar", {**small, **{f"g{i}": sample(i) for i in range(30)}})
    stream = LaionStream(laion_settings(shard, held_out_share=1e-9, shuffle_buffer=1), 32, seed=0)
    take(stream, 1)
    assert stream.counts["unfit sizes"] == 2
    with pytest.raises(DataError, match=r"1 unfit sizes.*[31]x1 pixels, beyond data.smallest_side = 8, data.largest_r"):
        take(LaionStream(laion_settings(shard, held_out_share=1e-9, max_broken_share=0), 32, seed=0), 1)


def test_resume_is_exact_where_whole_batches_are_broken(tmp_path):
    samples = {str(i): sample(i) if i % 2 else {"jpg": b"\xff\xd8none", "txt": b"broken"} for i in range(8)}
    broken = laion_settings(write_shard(tmp_path / "0.tar", samples), max_broken_share=0.6, held_out_share=1e-9)
    whole = take(LaionStream(broken, 1, seed=0), 12)
    assert all(caption != ["broken"] for _, caption in whole)
    for start in range(1, 12):
        assert same(take(LaionStream(broken, 1, seed=0), 12 - start, start), whole[start:])


def test_too_many_broken_images_is_an_error_naming_shard_and_counts(tmp_path):
    good = write_shard(tmp_path / "good.tar", {f"g{i}": sample(i) for i in range(20)})
    bad = write_shard(tmp_path / "bad.tar", {f"b{i}": {"jpg": b"none", "txt": b"x"} for i in range(20)})
    strict = laion_settings(good, bad, max_broken_share=0.05, held_out_share=1e-9)
    with pytest.raises(DataError, match=r"max_broken_share = 0.05 .*11 broken images.*; 11 of them in shard .*bad.tar"):
        take(LaionStream(strict, 4, seed=0), 50)


def test_an_error_in_a_worker_reaches_the_caller(tmp_path):
    bad = write_shard(tmp_path / "bad.tar", {f"b{i}": {"png": encoded(1), "txt": b" "} for i in range(20)})
    with pytest.raises(DataError, match=r"(?s)missing captions.*in shard .*bad.tar"):
        take(LaionStream(laion_settings(bad, workers=1, max_broken_share=0), 2, seed=0), 1)


@pytest.mark.parametrize("into_member", [0, 100, 1000])  # between two members, in a header, and in an image
def test_truncated_shards_are_counted_and_what_came_before_is_used(laion_folder, tmp_path, into_member):
    whole = laion_folder / "00000.tar"
    with tarfile.open(whole) as tar:
        member = [m for m in tar if m.name.endswith(".jpg")][9]
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[: member.offset + into_member])
    stream = LaionStream(laion_settings(tmp_path / "cut.tar", held_out_share=1e-9, shuffle_buffer=1), 4, seed=0)
    take(stream, 12)
    assert stream.counts["truncated shards"] >= 1
    with pytest.raises(DataError, match=r"truncated shards; .*cut.tar"):
        take(LaionStream(laion_settings(tmp_path / "cut.tar", max_broken_share=0), 4, seed=0), 50)


def test_shards_that_are_of_no_use_are_named(tmp_path):
    (tmp_path / "empty.tar").touch()
    with pytest.raises(DataError, match="'.*none-1.tar' matches no file"):
        LaionStream(laion_settings(tmp_path / "none-{1..2}.tar"), 2, seed=0)
    with pytest.raises(DataError, match="empty.tar is an empty file: download it again"):
        expand_shards([str(tmp_path / "*.tar")])
    hollow = write_shard(tmp_path / "hollow.tar", {})
    with pytest.raises(DataError, match="hollow.tar holds no samples"):
        take(LaionStream(laion_settings(hollow), 2, seed=0), 1)
    full = write_shard(tmp_path / "0.tar", {str(i): sample(i) for i in range(3)})
    with pytest.raises(DataError, match="lower data.held_out_share"):
        take(LaionStream(laion_settings(full, held_out_share=0.9999999), 2, seed=0), 1)


def test_patterns_expand_in_order_and_urls_are_left_alone(laion_folder):
    found = expand_shards([f"{laion_folder}/0000[12].tar", "https://host.test/{00..01}.tar", f"{laion_folder}/*.tar"])
    names = [f"{laion_folder}/0000{i}.tar" for i in (1, 2)]
    assert found == [*names, "https://host.test/00.tar", "https://host.test/01.tar", f"{laion_folder}/00000.tar"]


def test_paths_are_the_repositorys_wherever_one_is(laion_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "ROOT", laion_folder.parent)
    monkeypatch.chdir(tmp_path)
    relative = laion_settings(f"{laion_folder.name}/*.tar")
    assert expand_shards(relative.shards)[0] == f"{laion_folder.name}/00000.tar"
    assert len(take(LaionStream(relative, 4, seed=0), 1)[0][1]) == 4


def test_shards_come_through_a_pipe(laion_folder):
    piped = laion_settings(f"pipe:cat {laion_folder}/0000{{0..2}}.tar")
    direct = laion_settings(*sorted(laion_folder.glob("*.tar")))
    assert same(take(LaionStream(piped, 4, seed=0), 3), take(LaionStream(direct, 4, seed=0), 3))
