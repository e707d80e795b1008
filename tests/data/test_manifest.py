"""Manifests: every kind of change to shards and captions is told, those of URLs by what their server states."""

import functools
import http.server
import os
import threading

import pytest

from splam.data.manifest import build_manifest, caption_hash, check_manifest

CAPTIONS = {"coco30k": ["a dog", "zwei Hündchen"]}


@pytest.fixture
def shards(tmp_path):
    """Three files of 3,000 bytes."""
    paths = [tmp_path / f"{i:05d}.tar" for i in range(3)]
    for path in paths:
        path.write_bytes(bytes(3000))
    return [str(path) for path in paths]


def test_a_manifest_has_sizes_and_caption_hashes(shards):
    kept = build_manifest(shards, CAPTIONS)
    assert kept["shards"][shards[1]] == {"bytes": 3000}
    assert kept["captions"] == {"coco30k": {"count": 2, "sha256": caption_hash(CAPTIONS["coco30k"])}}
    assert check_manifest(kept, build_manifest(shards, CAPTIONS)) == []


def test_every_change_is_one_sentence(shards):
    kept = build_manifest(shards[:2], CAPTIONS)
    os.truncate(shards[1], 2999)
    told = check_manifest(kept, build_manifest(shards[1:], {"coco30k": ["a dog"], "coco5k": ["a"]}))
    expected = {
        f"shards: {shards[0]} was {{'bytes': 3000}}, is not there",
        f"shards: {shards[1]} was {{'bytes': 3000}}, is {{'bytes': 2999}}",
        f"shards: {shards[2]} was not there, is {{'bytes': 3000}}",
    }
    assert expected == {sentence.partition(": restore")[0] for sentence in told[:3]}
    assert [sentence.split()[1] for sentence in told[3:]] == ["coco30k", "coco5k"]


@pytest.fixture
def server(tmp_path):
    """The address of a server of tmp_path that states sizes and entity tags."""

    class Tagged(http.server.SimpleHTTPRequestHandler):
        def end_headers(self):
            self.send_header("ETag", tags[0])
            super().end_headers()

        def log_message(self, *args):
            """Say nothing."""

    tags = ['"first"']
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Tagged, directory=tmp_path)) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}", tags
        served.shutdown()


def test_urls_are_known_by_what_their_server_states(shards, server):
    address, tags = server
    listed = [f"{address}/00000.tar", f"{address}/none.tar", "pipe:cat x.tar"]
    kept = build_manifest(listed, {})
    assert list(kept["shards"].values()) == [{"bytes": 3000, "etag": '"first"'}, {}, {}]
    assert check_manifest(kept, build_manifest(listed, {})) == []
    tags[0] = '"second"'
    assert """'etag': '"first"'}, is {'bytes': 3000, 'etag': '"second"'}""" in told(kept, listed)
    os.remove(shards[0])
    assert "is not there" in told(kept, listed)


def told(kept, listed) -> str:
    (problem,) = check_manifest(kept, build_manifest(listed, {}))
    return problem
