"""Multistep consistency sampling of a published student (Eq. 19).

Every sample has its own generator, so its batch affects it only by rounding.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from splam.method.loss import Network, consistency
from splam.method.schedule import Schedule, ddim_grid


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One generator a sample, on the CPU, so that noise does not depend on the device."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draw_noise(sources: list[torch.Generator], shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """The next normal draw of every generator: (n, *shape), float32."""
    return torch.cat([torch.randn((1, *shape), generator=g) for g in sources]).to(device)


def consistency_times(steps: int, length: int = 1000) -> list[int]:
    """LCMScheduler's times: 1 step [999]; 2 steps [999, 499]; 4 steps [999, 759, 499, 259]."""
    grid = ddim_grid(length).flip(0)
    if not 1 <= steps <= len(grid):
        raise ValueError(f"steps is {steps}: choose 1 to {len(grid)}")
    return [int(grid[i * len(grid) // steps]) for i in range(steps)]


def published(network: Network, z: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """F(z, c, 1, t): the published network knows no gamma (Eq. 19). z (n, c, h, w) and t (n,) to clean latents."""
    gamma = torch.ones(len(z), device=z.device)
    return consistency(network, z, schedule.sigma(t), t, gamma, schedule)


def sample_consistency(
    network: Network, sources: list[torch.Generator], shape: Sequence[int], steps: int, schedule: Schedule
) -> Tensor:
    """Multistep consistency sampling (Song et al., 2023, Alg. 1): the model's guess, noised to the next time.

    Returns clean latents (n, *shape), one for each of the sources.
    """
    device = schedule.alphas.device
    times = [torch.full((len(sources),), t, device=device) for t in consistency_times(steps, schedule.length)]
    z = draw_noise(sources, shape, device)
    for t, s in zip(times, times[1:], strict=False):
        x0 = published(network, z, t, schedule)  # Eq. 19
        z = schedule.add_noise(x0, draw_noise(sources, shape, device), s)
    return published(network, z, times[-1], schedule)
