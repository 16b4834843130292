"""Schedule-free AdamW (arXiv 2405.15682), by the package schedulefree: `optimizer=schedule_free`.

The optimizer trains y, a point between z, where the gradient steps end, and x, their average. x is the model: the
callback `averages.ScheduleFreeWeightAveraging` validates, tests and saves it.
"""

from typing import Any

from schedulefree import AdamWScheduleFree


class ScheduleFreeAdamW(AdamWScheduleFree):  # type: ignore[misc]
    """AdamWScheduleFree that is always in training mode: the parameters are y. Use it with `schedule=constant`."""

    counts = ("k", "weight_sum", "lr_max", "scheduled_lr")  # in its parameter groups, next to settings

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)
        for group in self.param_groups:
            group["train_mode"] = True
