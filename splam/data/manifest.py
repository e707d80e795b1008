"""Manifests: which data a result was made from, without keeping the data.

A manifest lists every shard with its size and sha256 (of a URL: the size and entity tag that its server states, or
the URL alone where it states none), and the hashes of caption lists. It is small JSON with stable bytes, so git and DVC
keep it. `check_manifest` compares it with what is there now.
"""

from __future__ import annotations

import hashlib
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from splam.data.laion import DataError, is_url

CHUNK = 1 << 22  # bytes read at a time
TIMEOUT = 20  # seconds for a server to say what a URL holds
UNREACHABLE = "size and content unknown: the URL alone identifies it"


def caption_hash(captions: Sequence[str]) -> str:
    """sha256 of a list of captions, in order: the hexadecimal digest of its JSON."""
    return hashlib.sha256(json.dumps(list(captions), ensure_ascii=False).encode()).hexdigest()


def build_manifest(
    shards: Iterable[str], captions: Mapping[str, Sequence[str]] | None = None, cache: Path | None = None
) -> dict[str, Any]:
    """{"shards": [{"shard", "bytes", "sha256"}, ...], "captions": {name: {"count", "sha256"}}}.

    shards: paths and URLs, as expand_shards gives them. cache: a file that keeps the hashes of files by size and time
    of change, written as it goes on, so that a stopped run hashes no file twice. Raises DataError for a missing file.
    """
    shards = list(shards)
    known = _HashCache(cache)
    sizes = {shard: _size(shard) for shard in shards if not is_url(shard)}
    with tqdm(total=sum(sizes.values()), unit="B", unit_scale=True, desc="hashing shards", mininterval=2) as bar:
        entries = [_url_entry(s) if is_url(s) else _file_entry(s, known, bar) for s in shards]
    lists = {name: {"count": len(c), "sha256": caption_hash(c)} for name, c in (captions or {}).items()}
    return {"shards": entries, "captions": lists}


def save_manifest(manifest: Mapping[str, Any], path: Path) -> None:
    """Write a manifest, replacing the file at once; the same manifest gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    os.replace(part, path)


def load_manifest(path: Path) -> dict[str, Any]:
    """Read a manifest. Raises FileNotFoundError or DataError, with the remedy."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no manifest {path}: run the data stage (dvc repro data) first")
    try:
        manifest = json.loads(path.read_text())
        assert isinstance(manifest["shards"], list) and isinstance(manifest["captions"], dict)
    except (ValueError, KeyError, TypeError, AssertionError):
        raise DataError(f"{path} is no manifest: delete it and run the data stage again") from None
    return manifest


def check_manifest(
    manifest: Mapping[str, Any],
    shards: Iterable[str],
    captions: Mapping[str, Sequence[str]] | None = None,
    cache: Path | None = None,
) -> list[str]:
    """What is not as the manifest says, a sentence with its remedy each; an empty list where all is well.

    shards and captions: those of now. Sizes are compared before any file is read.
    """
    shards, recorded = list(shards), {entry["shard"]: entry for entry in manifest["shards"]}
    known = _HashCache(cache)
    checked = [shard for shard in shards if shard in recorded]
    total = sum(recorded[shard].get("bytes") or 0 for shard in checked if not is_url(shard))
    found = []
    with tqdm(total=total, unit="B", unit_scale=True, desc="checking shards", mininterval=2) as bar:
        for shard in checked:
            entry = recorded[shard]
            found.append(_url_problem(shard, entry) if is_url(shard) else _file_problem(shard, entry, known, bar))
    problems = _list_problems(list(recorded), shards) + [problem for problem in found if problem]
    return problems + _caption_problems(manifest["captions"], captions or {})


def _list_problems(recorded: list[str], shards: list[str]) -> list[str]:
    """Shards that are only in the manifest, or only in the parameters."""
    added = "Shard {} is not in the manifest: run the data stage again, or take it out of data.shards."
    gone = "Shard {} is in the manifest but no longer in data.shards: put it back, or run the data stage again."
    then, now = set(recorded), set(shards)
    problems = [added.format(shard) for shard in shards if shard not in then]
    return problems + [gone.format(shard) for shard in recorded if shard not in now]


def _size(shard: str) -> int:
    if not Path(shard).is_file():
        raise DataError(f"shard {shard} does not exist: download it, or take it out of data.shards")
    return Path(shard).stat().st_size


def _file_entry(shard: str, known: _HashCache, bar: tqdm) -> dict[str, Any]:
    return {"shard": shard, "bytes": _size(shard), "sha256": known.sha256(Path(shard), bar)}


def _file_problem(shard: str, entry: Mapping[str, Any], known: _HashCache, bar: tqdm) -> str | None:
    """What is wrong with a local shard."""
    path, size = Path(shard), entry["bytes"]
    again = "download it again, or run the data stage again if the change is meant."
    if not path.is_file():
        return f"Shard {shard} is missing: download it, or take it out of data.shards."
    now = path.stat().st_size
    if now == 0:
        return f"Shard {shard} is empty, it had {size:,} bytes: {again}"
    if now < size:
        return f"Shard {shard} is truncated, {now:,} of {size:,} bytes: {again}"
    if now > size or known.sha256(path, bar) != entry["sha256"]:
        return f"Shard {shard} has changed ({now:,} bytes, {size:,} in the manifest): {again}"
    return None


def _url_entry(shard: str) -> dict[str, Any]:
    """What the server states of a URL; webdataset's other protocols, and servers that say nothing, state nothing."""
    facts = _head(shard)
    return {"shard": shard, **facts} if facts else {"shard": shard, "note": UNREACHABLE}


def _head(url: str) -> dict[str, Any]:
    """{"bytes", "etag"} as far as an HTTP server states them."""
    if not url.startswith(("http://", "https://")):
        return {}
    try:
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            size, etag = answer.headers.get("Content-Length"), answer.headers.get("ETag")
    except (urllib.error.URLError, OSError):
        return {}
    return ({"bytes": int(size)} if size else {}) | ({"etag": etag} if etag else {})


def _url_problem(shard: str, entry: Mapping[str, Any]) -> str | None:
    """What is wrong with a URL; nothing can be said of one that had no facts."""
    facts = {key: entry[key] for key in ("bytes", "etag") if key in entry}
    now = _head(shard) if facts else {}
    if facts and not now:
        return f"Shard {shard} cannot be reached or no longer states its size: check the URL and the network."
    changed = [f"{key} was {facts[key]}, is {now[key]}" for key in facts if key in now and now[key] != facts[key]]
    return f"Shard {shard} has changed ({'; '.join(changed)}): run the data stage again." if changed else None


def _caption_problems(recorded: Mapping[str, Any], captions: Mapping[str, Sequence[str]]) -> list[str]:
    """Caption lists that are not those of the manifest."""
    again = "restore its file, or run the data stage again if the change is meant."
    problems = [f"Caption list {n} is not there any more: {again}" for n in recorded if n not in captions]
    for name, texts in captions.items():
        if name not in recorded:
            problems.append(f"Caption list {name} is not in the manifest: run the data stage again.")
        elif caption_hash(texts) != recorded[name]["sha256"]:
            problems.append(
                f"Caption list {name} has changed ({len(texts):,} captions, {recorded[name]['count']:,} in the "
                f"manifest): {again}"
            )
    return problems


class _HashCache:
    """sha256 of files, kept in a JSON file by absolute path, size and time of change."""

    def __init__(self, path: Path | None):
        self.path = path
        self.known: dict[str, list] = {}
        if path is not None and path.is_file():
            try:
                self.known = json.loads(path.read_text())
            except ValueError:  # a cache is no loss
                self.known = {}

    def sha256(self, path: Path, bar: tqdm) -> str:
        """The hexadecimal digest of a file, from the cache if the file has not been touched."""
        facts, key = path.stat(), str(path.resolve())
        size, changed, digest = self.known.get(key, (None, None, ""))
        if (size, changed) == (facts.st_size, facts.st_mtime_ns):
            bar.update(facts.st_size)
            return digest
        state = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                state.update(chunk)
                bar.update(len(chunk))
        self.known[key] = [facts.st_size, facts.st_mtime_ns, state.hexdigest()]
        if self.path is not None:
            save_manifest(self.known, self.path)
        return state.hexdigest()
