"""Sizing: the nodes that a number of users needs, from a matrix of measured capacities."""

from servecap.plan.answer import (
    Demand,
    GpuPlan,
    LeftOut,
    ModelPlan,
    Plan,
    Price,
    Split,
    Supply,
)
from servecap.plan.sizing import gpu_label, plan

__all__ = [
    "Demand",
    "GpuPlan",
    "LeftOut",
    "ModelPlan",
    "Plan",
    "Price",
    "Split",
    "Supply",
    "gpu_label",
    "plan",
]
