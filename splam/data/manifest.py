"""Which shards and captions a result was made from, without keeping them.

DVC hashes local shards, which are dependencies of the stages that read them: a manifest has their sizes alone. Of URLs
it has the size and entity tag that the server states, and of caption lists the sha256.
"""

import hashlib
import json
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from splam.config import ROOT
from splam.data.shards import is_url

TIMEOUT = 20  # seconds for a server to say what a URL holds


def caption_hash(captions: Sequence[str]) -> str:
    """sha256 of a list of captions, in order: the hexadecimal digest of its JSON."""
    return hashlib.sha256(json.dumps(list(captions), ensure_ascii=False).encode()).hexdigest()


def build_manifest(shards: Iterable[str], captions: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """{"shards": {shard: {"bytes", "etag"}}, "captions": {name: {"count", "sha256"}}}.

    shards: paths and URLs, as expand_shards gives them; what is not known of one is left out.
    """
    lists = {name: {"count": len(texts), "sha256": caption_hash(texts)} for name, texts in captions.items()}
    return {"shards": {shard: _facts(shard) for shard in shards}, "captions": lists}


def _facts(shard: str) -> dict[str, Any]:
    """{"bytes", "etag"} of a shard, as far as they are known; nothing of webdataset's other protocols."""
    try:
        if not is_url(shard):
            return {"bytes": (ROOT / shard).stat().st_size}
        if not shard.startswith(("http://", "https://")):
            return {}
        request = urllib.request.Request(shard, method="HEAD")
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            size, etag = answer.headers.get("Content-Length"), answer.headers.get("ETag")
    except OSError:  # no such file, or no answer
        return {}
    return ({"bytes": int(size)} if size else {}) | ({"etag": etag} if etag else {})


def check_manifest(manifest: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """How the manifest of now differs from the one that was kept: a sentence with its remedy each."""
    problems = []
    for kind, then in manifest.items():
        for name in then | now[kind]:
            was, found = then.get(name), now[kind].get(name)
            if was != found:
                facts = f"{kind}: {name} was {was or 'not there'}, is {found or 'not there'}"
                problems.append(f"{facts}: restore it, or run the data stage again if the change is meant.")
    return problems
