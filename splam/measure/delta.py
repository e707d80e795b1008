"""delta(t, k), the error between neighbours on a path (Fig. 2c)."""

from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from splam.config import Delta
from splam.method.schedule import Schedule, ddim_grid


@torch.no_grad()
def delta(
    predicted_x0: Callable[[Tensor, Tensor], Tensor],
    latents: Tensor,
    noise: Tensor,
    schedule: Schedule,
    settings: Delta,
) -> list[dict[str, float]]:
    """delta(t, k) = E||f(x_t, t) - f(x_{t-k}, t - k)|| on the grid times t >= first_time; both of one image and noise.

    predicted_x0: f at gamma = 1, of z (n, c, h, w), noised from all the latents, and t int64 (n,); latents and noise:
    (n, c, h, w), n >= 2.

    A row for each t, the *upper* time of its pair, of means over the images and their standard errors (_se): delta_rms,
    of the root mean square over latent elements; delta_l2, of the plain L2 norm; x0_error_rms, of the root mean square
    of f(x_t, t) against the clean latents, without which delta means little (a constant has 0).
    """
    skip, grid = settings.skip, ddim_grid(schedule.length).tolist()
    uppers = [t for t in grid if t >= settings.first_time]
    if not uppers or uppers[0] < skip:
        raise ValueError(f"delta.first_time is {settings.first_time}: choose {skip} (delta.skip) to {grid[-1]}")
    rows, outputs = [], {}  # outputs: by time, those whose upper partner is still to come
    for time in tqdm(sorted({*uppers, *(t - skip for t in uppers)}), desc="delta", mininterval=5, leave=False):
        t = torch.full((len(latents),), time, device=latents.device)
        outputs[time] = predicted_x0(schedule.add_noise(latents, noise, t), t)
        if time in uppers:
            change, x0_error = outputs[time] - outputs.pop(time - skip), outputs[time] - latents
            rms, x0_rms = (x.double().flatten(1).square().mean(1).sqrt() for x in (change, x0_error))
            mean, error, l2 = rms.mean().item(), rms.std().item() / len(rms) ** 0.5, change[0].numel() ** 0.5
            row = {"t": time, "delta_rms": mean, "delta_rms_se": error}
            row |= {"delta_l2": mean * l2, "delta_l2_se": error * l2}  # an L2 norm is sqrt(c h w) times the RMS
            rows.append(row | {"x0_error_rms": x0_rms.mean().item(), "images": len(rms)})
    return rows
