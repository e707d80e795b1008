"""Algorithm 1 a second time, from the paper's formulas: numpy, one sample after another, nothing of splam."""

import math

import numpy as np


def random_network(seed: int, size: int, facts: int):
    """A smooth map (z, fact, ...) to the shape of z, of `size` values in z, that depends on all it is given."""
    rng = np.random.default_rng(seed)
    mixing, weights = rng.normal(size=(size, size)) / size**0.5, rng.normal(size=(size, facts))
    return lambda z, *given: np.tanh(mixing @ z.ravel() + weights @ np.array(given, float)).reshape(z.shape)


def loss(student, target, teacher, samples, settings) -> float:
    """Eq. 17 over samples (z_t, t, gamma, w). student, target: (z, sigma, t, gamma); teacher: (z, t, 1 with a caption).

    settings: alpha and sigma (T,), skip, solver_skip, sigma_form, distance and huber_c.
    """
    return float(np.mean([_distance(*_sides(student, target, teacher, *s, settings), settings) for s in samples]))


def _sides(student, target, teacher, z_t, t, gamma, w, settings):
    alpha, sigma, s = settings.alpha, settings.sigma, max(t - settings.skip, 0)
    z_s = _solve(teacher, z_t, t, s, w, settings)
    ratio = alpha[t] / alpha[s]
    z = (1 - gamma) * ratio * z_s + gamma * z_t
    level = (1 - gamma) * ratio * sigma[s] + gamma * sigma[t]
    if settings.sigma_form == "markov":
        level = math.sqrt(ratio**2 * sigma[s] ** 2 + gamma**2 * (1 - ratio**2))
    ours = _output(z, (z - level * student(z, level, t, gamma)) / alpha[t], t)
    return ours, _output(z_s, (z_s - sigma[s] * target(z_s, sigma[s], s, 1.0)) / alpha[s], s)


def _solve(teacher, z, t, s, w, settings):
    """Eq. 18 as printed: the increments of DDIM with and without the caption, weighted by w and 1 - w."""
    while t > s:
        u = max(t - settings.solver_skip, 0)
        increments = []
        for caption in (1, 0):
            noise = teacher(z, t, caption)
            x0 = (z - settings.sigma[t] * noise) / settings.alpha[t]
            increments.append(settings.alpha[u] * x0 + settings.sigma[u] * noise - z)
        z, t = z + w * increments[0] + (1 - w) * increments[1], u
    return z


def _output(z, x0, t):
    return 0.25 / (100 * t**2 + 0.25) * z + 10 * t / math.sqrt(100 * t**2 + 0.25) * x0


def _distance(a, b, settings):
    d = a - b
    if settings.distance == "l2":
        return np.mean(d**2)
    if settings.distance == "huber":
        return np.mean(np.sqrt(d**2 + settings.huber_c**2) - settings.huber_c)
    c = 0.00054 * math.sqrt(d.size)
    return math.sqrt(np.sum(d**2) + c**2) - c
