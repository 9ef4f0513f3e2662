"""Operators of the library: what they mean. A file holds one contract, its plain-torch reference and the registration.

How fast they are is decided elsewhere, by the dispatcher: `tas_fast._backend` says which backends serve this process.
"""

from tas_fast import _backend
from tas_fast.ops import _launchers
from tas_fast.ops.active_conv2d import active_conv2d
from tas_fast.ops.channel_interpolation import channel_interpolation
from tas_fast.ops.distillation_loss import distillation_loss
from tas_fast.ops.fragment_aggregate import fragment_aggregate
from tas_fast.ops.fused_batch_norm import fused_batch_norm
from tas_fast.ops.gumbel_topk import gumbel_softmax, gumbel_topk
from tas_fast.ops.weighted_interpolation_sum import weighted_interpolation_sum

_backend.load()
_launchers.register()

__all__ = [
    "active_conv2d",
    "channel_interpolation",
    "distillation_loss",
    "fragment_aggregate",
    "fused_batch_norm",
    "gumbel_softmax",
    "gumbel_topk",
    "weighted_interpolation_sum",
]
