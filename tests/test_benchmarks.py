"""The benchmark runs, and claims nothing of a CPU."""

import dataclasses
import re

import pandas as pd
import torch

from benchmarks import train_throughput


def test_the_throughput_table_on_small_networks(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(train_throughput, "RIVALS", [("authors", "splam", 100)])
    monkeypatch.setattr(train_throughput, "STEPS", 2)
    monkeypatch.setattr(train_throughput, "CHOICES", [True])
    monkeypatch.setitem(train_throughput.TRAINING, "batch_size", 1)
    with torch._dynamo.config.patch(disable=True):  # compiling takes minutes on a CPU
        train_throughput.compare(dataclasses.replace(teacher, bf16=True), tmp_path)
    text = (tmp_path / "gpu-throughput.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith(("| full", "| LoRA"))]
    assert len(rows) == 4 and all("not measured on a CPU" in row for row in rows)
    assert re.search(r"\| sd15-night, splam-lora +\| 100, ME +\| +4 \|", text)
    assert len(pd.read_csv(tmp_path / "gpu-step.csv")) == 2 * 4  # whose losses agreed with the scripts'
