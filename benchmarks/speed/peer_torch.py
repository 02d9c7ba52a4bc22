"""PyTorch, for peers.py: `eager` trains one network as everybody does, `vmap` many at once with torch.func.

No probes. All networks of a process are fed the same rows in the same order, shuffled once an epoch: less work than ours.
"""

from __future__ import annotations

import itertools
import os
import sys
from typing import Any

import peer
import torch
from torch import nn

DEVICE = {"cpu": "cpu", "gpu": "cuda"}[os.environ.get("PEER_PLATFORM", "cpu")]
ADAMS: dict[str, dict[str, bool]] = {"fused": {"fused": True}, "foreach": {"foreach": True}, "for-loop": {"foreach": False}}


def network(layers: tuple[int, ...]) -> nn.Sequential:
    """Dense layers with ReLU between them; hidden kernels by he_normal, zero biases."""
    parts: list[nn.Module] = []
    for d_in, d_out in itertools.pairwise(layers):
        dense = nn.Linear(d_in, d_out)
        nn.init.kaiming_normal_(dense.weight, nonlinearity="relu")
        nn.init.zeros_(dense.bias)
        parts += [dense, nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def waited() -> None:
    """Wait until the device has computed everything."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


class Rows:
    """The training rows, and the batches of an epoch."""

    def __init__(self, job: peer.Job) -> None:
        self.x, self.y = (torch.from_numpy(array).to(DEVICE) for array in peer.data(job))
        self.batch = job.batch
        self.batches: list[tuple[torch.Tensor, torch.Tensor]] = []

    def shuffle(self) -> None:
        order = torch.randperm(len(self.x), device=DEVICE)
        self.batches = list(zip(self.x[order].split(self.batch), self.y[order].split(self.batch), strict=True))
        waited()

    def first(self, steps: int) -> Any:
        """So many batches; from the first again where an epoch has fewer."""
        return itertools.islice(itertools.cycle(self.batches), steps)


class Eager:
    """One network, one backward pass and one call of the optimiser a step."""

    width = networks = 1

    def __init__(self, job: peer.Job, adam: str) -> None:
        self.job, self.rows, self.model = job, Rows(job), network(job.layers).to(DEVICE)
        self.adam = torch.optim.Adam(self.model.parameters(), lr=1e-3, **ADAMS[adam])

    def piece(self, steps: int) -> tuple[int, float]:
        def train() -> int:
            loss_of = nn.functional.mse_loss
            for x, y in self.rows.first(steps):
                self.adam.zero_grad()
                loss_of(self.model(x), y).backward()
                self.adam.step()
            waited()
            return steps

        return peer.in_proportion(self.rows.shuffle, train, len(self.rows.x) / self.job.batch)


class Vmap:
    """Many networks with their weights stacked; Adam does not care, so PyTorch's own fused one updates the stacks."""

    def __init__(self, job: peer.Job, width: int) -> None:
        self.job, self.rows, self.width, self.networks = job, Rows(job), width, width
        models = [network(job.layers).to(DEVICE) for _ in range(width)]
        stacks, _ = torch.func.stack_module_state(models)
        # Leaves that record no graph of their own: torch.func differentiates, and the optimiser only reads `.grad`.
        self.params = {name: stack.detach() for name, stack in stacks.items()}
        self.adam = torch.optim.Adam(self.params.values(), lr=1e-3, fused=True)
        one = models[0].to("meta")

        def loss(params: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return nn.functional.mse_loss(torch.func.functional_call(one, params, (x,)), y)

        self.grads = torch.func.vmap(torch.func.grad(loss), in_dims=(0, None, None))

    def piece(self, steps: int) -> tuple[int, float]:
        def train() -> int:
            for x, y in self.rows.first(steps):
                for name, grad in self.grads(self.params, x, y).items():
                    self.params[name].grad = grad
                self.adam.step()
            waited()
            return steps

        return peer.in_proportion(self.rows.shuffle, train, len(self.rows.x) / self.job.batch)


if __name__ == "__main__":
    if DEVICE == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"torch {torch.__version__} has no CUDA device")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    peer.serve(f"torch {torch.__version__}", {"eager": Eager, "vmap": Vmap}[sys.argv[1]])
