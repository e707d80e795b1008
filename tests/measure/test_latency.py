"""What is timed, and what stands beside it."""

import time

import torch

from splam.measure.latency import latency_row


class _Pipeline:
    """Keeps how it was called."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self):
        self.calls, self.unet = [], torch.nn.Identity()

    def __call__(self, prompts, num_inference_steps, guidance_scale):
        self.calls.append((prompts, num_inference_steps, guidance_scale))
        time.sleep(0.002)
        for _ in range(num_inference_steps):
            self.unet(torch.zeros(1))


def test_all_calls_are_alike_and_the_first_is_not_counted(params):
    pipeline = _Pipeline()
    settings = params.latency.model_copy(update={"repeats": 3})
    row = latency_row(pipeline, ["a", "b"], 4, 3.0, settings)
    assert pipeline.calls == [(["a", "b"], 4, 3.0)] * 4
    assert 0 < row["seconds_min"] <= row["seconds_median"] <= row["seconds_max"]
    assert 0 < row["unet_seconds_median"] < row["seconds_median"] - 0.002
    assert (row["steps"], row["batch_size"], row["repeats"], row["dtype"]) == (4, 2, 3, "float32")
    assert row["device"].endswith("threads")
