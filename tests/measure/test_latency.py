"""What is timed, and what stands beside it."""

import time

import torch

from splam.measure.latency import latency_rows


class _Pipeline:
    """Keeps how it was called, in a list that all of them share."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, calls):
        self.calls, self.unet = calls, torch.nn.Identity()

    def __call__(self, prompts, num_inference_steps, guidance_scale):
        self.calls.append((prompts, num_inference_steps, guidance_scale))
        time.sleep(0.002)
        for _ in range(num_inference_steps):
            self.unet(torch.zeros(1))


def test_cases_take_turns_and_the_first_round_is_not_counted():
    calls = []
    cases = [("SPLAM", _Pipeline(calls), 4, 1.0), ("Teacher", _Pipeline(calls), 8, 3.0)]
    rows = latency_rows(cases, ["a", "b"], 3)
    assert calls == [(["a", "b"], 4, 1.0), (["a", "b"], 8, 3.0)] * 4
    assert [row["method"] for row in rows] == ["SPLAM", "Teacher"]
    for row, (_, _, steps, w) in zip(rows, cases, strict=True):
        assert 0 < row["seconds_min"] <= row["seconds_median"] <= row["seconds_max"]
        assert 0 < row["unet_seconds_median"] < row["seconds_median"] - 0.002
        assert (row["steps"], row["guidance_scale"], row["batch_size"], row["repeats"]) == (steps, w, 2, 3)
        assert row["dtype"] == "float32" and row["device"].endswith("threads")
