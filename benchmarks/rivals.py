"""A training step as two public scripts take it, written anew from what they do, over our networks and draws.

For LCM diffusers' examples/consistency_distillation/train_lcm_distill_sd_wds.py, for SPLAM the authors'
train_splam_distill_sd_wds.py (github.com/MCG-NJU/SPLAM), with a loop for multiple estimation, which they lack. Both
encode images and captions in every step and call the teacher twice for guidance. Weights, batch, loss, precision and
the network's way in for w or gamma are ours.
"""

import copy

import torch
from torch import Tensor, nn

from splam.config import Run
from splam.networks.student import condition_width, guidance_embedding, make_student
from splam.networks.teacher import Teacher


class Script:
    """Latent consistency distillation with a w for each sample (LCM*) or one for all, or that of sub-paths."""

    def __init__(self, run: Run, teacher: Teacher):
        """As a training begins."""
        self.run, self.teacher, self.width = run, teacher, condition_width(run)
        self.solver_skip = 20 if run.multiple_estimation else run.skip  # k_phi, or k for one step of the solver
        self.teacher_unet = copy.deepcopy(teacher.unet).to(memory_format=torch.contiguous_format)
        self.student = make_student(self.teacher_unet, run).to(memory_format=torch.contiguous_format)
        self.target = copy.deepcopy(self.student).requires_grad_(False)
        pairs = zip(self.student.parameters(), self.target.parameters(), strict=True)
        self.pairs = [pair for pair in pairs if pair[0].requires_grad]
        self.optimizer = torch.optim.AdamW([p for p, _ in self.pairs], run.training.learning_rate, weight_decay=0)
        self.alpha, self.sigma = teacher.schedule.alpha, teacher.schedule.sigma  # at times (n,), to multiply images

    def step(self, images: Tensor, captions: list[str]) -> float:
        """One optimizer step, with draws of its own; its loss."""
        torch.use_deterministic_algorithms(False)
        vae, run, device, count = self.teacher.vae, self.run, self.teacher.device, len(images)
        latents = vae.encode(images.to(device)).latent_dist.sample() * vae.config.scaling_factor
        t = torch.randint(50, (count,), device=device) * 20 + 19
        z_t = self.alpha(t) * latents + self.sigma(t) * torch.randn_like(latents)
        low, high = run.training.lcm_star_scales if run.method == "lcm_star" else [run.guidance_scale] * 2
        gamma, w = torch.rand(2, count, device=device)
        loss = self.loss(z_t, t, self.teacher.embed(captions), gamma, low + (high - low) * w)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p, _ in self.pairs], run.training.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for parameter, average in self.pairs:
                average.mul_(run.training.ema_decay).add_(parameter, alpha=1 - run.training.ema_decay)
        return loss.detach().item()

    def loss(self, z_t: Tensor, t: Tensor, captions: Tensor, gamma: Tensor, w: Tensor) -> Tensor:
        """The Huber loss between the student, at t or between t and s, and the target at the solver's end."""
        sub_path, constant = self.run.method == "splam", None
        if self.width:  # the embedding of LCM's w, which SPLAM feeds 10 - 10 gamma; guidance_embedding takes one off
            fed, rest = (11 - 10 * gamma, torch.ones_like(gamma)) if sub_path else (w, w)
            condition, constant = (guidance_embedding(x, self.width).to(z_t) for x in (fed, rest))
        with torch.no_grad():
            z_s, s = self.solve(z_t, t, captions, w)
            aim = self.output(self.target, z_s, s, self.sigma(s), captions, constant)
        z, sigma = z_t, self.sigma(t)
        if sub_path:  # sigma(gamma, t) in the Markov form
            gamma, shrink = gamma.view(-1, 1, 1, 1), self.alpha(t) / self.alpha(s)
            sigma = ((self.sigma(s) * shrink) ** 2 + gamma**2 * (1 - shrink**2)).sqrt()
            z = gamma * z_t + (1 - gamma) * z_s * shrink
        ours = self.output(self.student, z, t, sigma, captions, condition if self.width else None)
        return (((ours - aim) ** 2 + self.run.training.huber_c**2).sqrt() - self.run.training.huber_c).mean()

    def solve(self, z: Tensor, t: Tensor, captions: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """DDIM with guidance in LCM's form, whose w is one less, from two calls of the teacher a step."""
        for _ in range(self.run.skip // self.solver_skip):
            s, found = torch.where(t - self.solver_skip < 0, 0, t - self.solver_skip), []
            for caption in (captions, self.teacher.empty.expand_as(captions)):
                with self.teacher.autocast():
                    noise = self.teacher_unet(z, t, encoder_hidden_states=caption).sample.float()
                found.append(((z - self.sigma(t) * noise) / self.alpha(t), noise))
            x0, noise = (full + (w.view(-1, 1, 1, 1) - 1) * (full - empty) for full, empty in zip(*found, strict=True))
            moved = self.alpha(s) * x0 + self.sigma(s) * noise
            z, t = torch.where((t > 0).view(-1, 1, 1, 1), moved, z), s
        return z, t

    def output(self, unet: nn.Module, z: Tensor, t: Tensor, sigma: Tensor, captions: Tensor, fed: Tensor) -> Tensor:
        """c_skip z + c_out x_0, of a network that predicts the noise."""
        with self.teacher.autocast():
            noise = unet(z, t, timestep_cond=fed, encoder_hidden_states=captions).sample.float()
        scaled, x0 = 10.0 * t.view(-1, 1, 1, 1), (z - sigma * noise) / self.alpha(t)
        return 0.25 / (scaled**2 + 0.25) * z + scaled / (scaled**2 + 0.25).sqrt() * x0
