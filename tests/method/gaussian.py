"""Data of which everything is known: N(mean, std^2) in every coordinate."""

from dataclasses import dataclass

from torch import Tensor

from splam.method.schedule import Schedule


@dataclass(frozen=True)
class Gaussian:
    schedule: Schedule
    mean: float = 0.7
    std: float = 0.4

    def spread(self, t: Tensor) -> Tensor:
        """The standard deviation of z_t."""
        return (self.schedule.alpha(t) ** 2 * self.std**2 + self.schedule.sigma(t) ** 2).sqrt()

    def epsilon(self, z: Tensor, t: Tensor) -> Tensor:
        """The exact noise prediction, -sigma(t) times the score."""
        return self.schedule.sigma(t) * (z - self.schedule.alpha(t) * self.mean) / self.spread(t) ** 2

    def flow(self, z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Where the ODE carries z from t to s: the standardised value is conserved."""
        standard = (z - self.schedule.alpha(t) * self.mean) / self.spread(t)
        return self.schedule.alpha(s) * self.mean + self.spread(s) * standard

    def network(self, z: Tensor, sigma: Tensor, t: Tensor, gamma: Tensor) -> Tensor:
        """The network whose x_0 is the end of the trajectory through z, at time 0 (gamma = 1)."""
        return (z - self.schedule.alpha(t) * self.flow(z, t, t * 0)) / sigma
