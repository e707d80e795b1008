"""Manifests: stable bytes, every kind of change noticed, unchanged files hashed once."""

import functools
import hashlib
import http.server
import os
import threading

import pytest

from splam.data import manifest as module
from splam.data.laion import DataError
from splam.data.manifest import build_manifest, caption_hash, check_manifest, load_manifest, save_manifest

CAPTIONS = {"coco30k": ["a dog", "zwei Hündchen"]}


@pytest.fixture
def shards(tmp_path):
    """Three files of 3,000 bytes."""
    paths = [tmp_path / f"{i:05d}.tar" for i in range(3)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes([i]) * 3000)
    return [str(path) for path in paths]


def test_a_manifest_states_sizes_and_hashes_in_stable_bytes(shards, tmp_path):
    built = build_manifest(shards, CAPTIONS)
    assert built["shards"][1] == {"shard": shards[1], "bytes": 3000, "sha256": hashlib.sha256(b"\1" * 3000).hexdigest()}
    assert built["captions"] == {"coco30k": {"count": 2, "sha256": caption_hash(CAPTIONS["coco30k"])}}
    for name in ("a.json", "b.json"):
        save_manifest(build_manifest(shards, CAPTIONS), tmp_path / name)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert load_manifest(tmp_path / "a.json") == built
    assert check_manifest(built, shards, CAPTIONS) == []


def test_caption_hash_sees_order_and_borders():
    assert len({caption_hash(c) for c in (["a", "b"], ["b", "a"], ["ab"], ["a b"], ["a\nb"])}) == 5


def change(path):
    with open(path, "r+b") as file:
        file.write(b"x")


@pytest.mark.parametrize(
    "damage, sentence",
    [
        (change, "has changed"),
        (lambda path: os.truncate(path, 2999), "is truncated, 2,999 of 3,000 bytes"),
        (lambda path: os.truncate(path, 4000), "has changed"),
        (lambda path: os.truncate(path, 0), "is empty"),
        (os.remove, "is missing: download it"),
    ],
)
def test_every_damage_to_a_shard_is_one_sentence(shards, damage, sentence):
    built = build_manifest(shards)
    damage(shards[1])
    problems = check_manifest(built, shards)
    assert len(problems) == 1 and shards[1] in problems[0] and sentence in problems[0] and problems[0].endswith(".")


def test_added_and_removed_shards_and_captions_are_told(shards):
    built = build_manifest(shards[:2], CAPTIONS)
    told = "\n".join(check_manifest(built, shards[1:], {"coco30k": ["a dog"], "coco5k": ["a"]}))
    for part in (
        f"{shards[2]} is not in the manifest",
        f"{shards[0]} is in the manifest but no longer in data.shards",
        "Caption list coco30k has changed (1 captions, 2 in the manifest)",
        "Caption list coco5k is not in the manifest",
    ):
        assert part in told
    assert "Caption list coco30k is not there any more" in check_manifest(built, shards[:2])[0]


def test_unchanged_files_are_hashed_once_and_a_stopped_run_goes_on(shards, tmp_path, monkeypatch):
    read = []
    plain = hashlib.sha256
    monkeypatch.setattr(module.hashlib, "sha256", lambda *a: read.append(1) or plain(*a))
    cache = tmp_path / "cache.json"
    build_manifest(shards[:2], cache=cache)
    built = build_manifest(shards[:2], cache=cache)
    assert len(read) == 2
    change(shards[0])  # same size, another time
    os.utime(shards[0], ns=(1, 1))
    assert len(check_manifest(built, shards[:2], cache=cache)) == 1 and len(read) == 3
    cache.write_text("{")  # cut by a crash
    assert len(check_manifest(built, shards[:2], cache=cache)) == 1 and len(read) == 5


def test_missing_shards_and_manifests_are_errors_with_a_remedy(shards, tmp_path):
    os.remove(shards[0])
    with pytest.raises(DataError, match="00000.tar does not exist: download it"):
        build_manifest(shards)
    with pytest.raises(FileNotFoundError, match="run the data stage"):
        load_manifest(tmp_path / "manifest.json")
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(DataError, match="is no manifest"):
        load_manifest(tmp_path / "manifest.json")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        """Say nothing."""


@pytest.fixture
def server(tmp_path):
    """The address of a server of tmp_path."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path)) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


def test_urls_are_known_by_what_their_server_states(shards, server):
    url = f"{server}/00000.tar"
    built = build_manifest([url, f"{server}/none.tar", "pipe:cat x.tar"])
    assert built["shards"][0] == {"shard": url, "bytes": 3000}
    assert [sorted(entry) for entry in built["shards"][1:]] == [["note", "shard"]] * 2
    listed = [entry["shard"] for entry in built["shards"]]
    assert check_manifest(built, listed) == []
    os.truncate(shards[0], 10)
    assert "bytes was 3000, is 10" in check_manifest(built, listed)[0]
    os.remove(shards[0])
    assert "cannot be reached" in check_manifest(built, listed)[0]
