"""The benchmark runs, and claims nothing of a CPU."""

import re

import pandas as pd
import torch

from benchmarks import train_throughput


def test_the_throughput_table_on_shrunk_networks(tmp_path, monkeypatch):
    monkeypatch.setattr(train_throughput, "KEYS", [("authors", 100)])
    arguments = ["--tiny-cpu", "--batch-size", "1", "--steps", "1", "--out", str(tmp_path)]
    with torch._dynamo.config.patch(disable=True):  # which main sets for good
        assert train_throughput.main(arguments) == 0
    text = (tmp_path / "gpu-throughput.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith(("| full", "| LoRA"))]
    assert len(rows) == 16 and all("not measured on a CPU" in row for row in rows)
    assert re.search(r"\| sd15-night, splam-lora +\| 100, ME +\| +4 \|", text) and "a CPU, with shrunk networks" in text
    assert len(pd.read_csv(tmp_path / "gpu-step.csv")) == 2 * 4  # whose losses agreed with the scripts'
