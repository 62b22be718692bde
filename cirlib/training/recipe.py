"""How a training is optimised: the study's own recipe and SPRC's."""

from dataclasses import dataclass
from math import inf

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR


@dataclass(frozen=True)
class TrainingConfig:
    """How to optimise: AdamW, one cycle of the learning rate with its peak at 10 % of the steps.

    ``sprc``: as SPRC does: peak at 5 %, from a hundredth, decay on every weight, gradients not clipped.
    """

    run: str  # the training's name in tables and messages
    epochs: int
    steps_per_epoch: int  # in batches
    lr: float
    temperature_lr: float | None = None  # of a learned temperature; None: as the rest
    precision: str = "auto"
    accumulation: int = 1  # batches whose gradients make one step; the last batch of an epoch always makes one
    unit: str = "triplets"  # what a batch is counted in
    recipe: str = "own"
    keep_epoch: int = 0  # whose checkpoint stays, as epoch-N.pt, for a warm start of others; 0: none


def optimisation(model: nn.Module, config: TrainingConfig) -> tuple[AdamW, OneCycleLR, float]:
    """Optimiser, schedule of the learning rate by steps of it, and the norm that gradients are clipped to.

    >>> optimisation(nn.Linear(2, 1), TrainingConfig("toy", epochs=3, steps_per_epoch=1, lr=0.01))[2]
    1.0
    """
    groups, sprc = _parameter_groups(model, config), config.recipe == "sprc"
    warm_up, start, epsilon, max_norm = (0.05, 100, 1e-7, inf) if sprc else (0.1, 25, 1e-8, 1.0)
    optimizer = AdamW(groups, betas=(0.9, 0.98), eps=epsilon, fused=True)
    steps = max(1, config.epochs * -(-config.steps_per_epoch // config.accumulation))
    options = {"total_steps": steps + 1, "pct_start": min(max(warm_up, 1.5 / steps), 0.9), "cycle_momentum": False}
    return optimizer, OneCycleLR(optimizer, [group["lr"] for group in groups], div_factor=start, **options), max_norm


def _parameter_groups(model: nn.Module, config: TrainingConfig) -> list[dict]:
    """Matrices decay; biases, norms and scalars do in SPRC only; a learned temperature has its own learning rate."""
    groups: tuple[list[nn.Parameter], ...] = ([], [], [])
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[2 if name.endswith("temperature") else int(parameter.ndim < 2)].append(parameter)
    rates = config.lr, config.lr, config.temperature_lr or config.lr
    others = 0.05 if config.recipe == "sprc" else 0.0
    return [
        {"params": group, "lr": lr, "weight_decay": decay}
        for group, lr, decay in zip(groups, rates, (0.05, others, others), strict=True)
        if group
    ]
