"""Muon: momentum whose steps are orthogonalised, for matrices and convolution kernels (Jordan et al., 2024).

Kernels count as matrices (out, in * height * width). Parameters of one shape are orthogonalised in one batch, which is
what makes it cheap on a CPU. Newton-Schulz runs in bfloat16 where that is fast, with the coefficients of the original
publication.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch

from .precision import fast_dtype

_COEFFICIENTS = (3.4445, -4.775, 2.0315)
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Every step has the size an Adam step of rate `lr` would have, whatever the gradient's scale."""

    def __init__(
        self, params: Iterable[torch.nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(list(params), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update; parameters without a gradient keep still."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[tuple[torch.nn.Parameter, torch.Tensor, bool]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                buffer = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                buffer.lerp_(parameter.grad, 1 - group["momentum"])
                update = torch.lerp(parameter.grad, buffer, group["momentum"]).reshape(parameter.shape[0], -1)
                tall = update.shape[0] > update.shape[1]
                update = update.T if tall else update
                by_shape[tuple(update.shape)].append((parameter, update, tall))
            for shape, members in by_shape.items():
                updates = orthogonalise(torch.stack([update for _, update, _ in members]))
                size = 0.2 * max(shape) ** 0.5 * group["lr"]
                for (parameter, _, tall), update in zip(members, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_((update.T if tall else update).reshape(parameter.shape), alpha=-size)


def orthogonalise(matrices: torch.Tensor) -> torch.Tensor:
    """Nearest semi-orthogonal matrices, roughly (singular values 0.7..1.2): (N, m, n) with m <= n -> the same."""
    a, b, c = _COEFFICIENTS
    x = matrices.to(fast_dtype(matrices.device.type))
    x = x / (x.float().norm(dim=(1, 2), keepdim=True) + 1e-7).to(x.dtype)
    for _ in range(_ITERATIONS):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.to(matrices.dtype)
