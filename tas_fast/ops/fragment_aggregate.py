"""Fragment aggregation: BatchNorm of several channel prefixes of one convolution, aligned, mixed, added and rectified.

    x_i    = (y_i - mean_i) * rstd_i                              rstd_i = 1 / sqrt(var_i + eps)
    z_k    = weight_k * x[:c_k] + bias_k                          k = 1..K, c_k = widths[k]
    out    = relu(sum_k probs_k * A_k z_k  (+ residual))          A_k: channel interpolation c_k -> c = max_k c_k

    y [N, C_y, H, W]    probs [K]    widths [n]    weight, bias, running_mean, running_var [n, C]    index [K], or n = K
    residual [N, C_r, H, W]          out [N, max(out_channels, C_r), H, W], out_channels >= c

Training uses the batch mean and biased variance of each channel, shared by all fragments, and moves the running
statistics of the sampled fragments (first c_k entries, unbiased variance) by `momentum`, once per mention in `index`.
Evaluation uses each fragment's running statistics. K = 1 with probability one is BatchNorm2d. The residual is added to
the first channels of the sum; channels without a term are zero before it, so c, C_r and out_channels may differ.

Per pixel this is one banded affine map, out = M y + b, whose M [out_channels, R] and b are built on the device from
device-held widths. Only the first R = min(C_y, out_channels) channels of y are read, and those from c on must be
finite: they have no influence and receive no gradient. With g = grad_out where out > 0, m = N H W:

    G_j = sum g_j        X_kji = sum g_j x_ki              (first pass; in training the same for all k)
    grad_bias_k = p_k A_k^T G                grad_weight_ki = p_k sum_j A_kji X_kji
    grad_probs_k = sum_ji A_kji (weight_ki X_kji + bias_ki G_j)
    U_ji = sum_k p_k A_kji weight_ki rstd_ki
    grad_y = U^T g - (training) (U^T G + x * sum_j U_ji X_ji) / m        (second pass)
    grad_residual = g[:, :C_r]

Saved: y, out (for the mask, only with relu), mean, rstd. A fast version makes three passes over a tensor forward and
five backward, as many as BatchNorm alone. Source: TAS (Dong and Yang, NeurIPS 2019), equations 3 and 4.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tas_fast.ops._fragments import bands_of, centre, map_channels, pad_channels, products_of, update_running
from tas_fast.ops._library import accumulation_dtype, define, described, fake, implement, layout_of, library, wrong

# mean, rstd: [R] in training, [K, R] in evaluation; meaningless from the largest width on. The backward gets `out` with
# relu; without it grad_residual is a slice of grad_out and not asked for. A gradient that is masked out has size [0].
define(
    "fragment_aggregate(Tensor y, Tensor widths, Tensor probs, Tensor weight, Tensor bias, Tensor(a!)? running_mean, "
    "Tensor(b!)? running_var, Tensor? residual, Tensor? index, SymInt out_channels, bool relu, bool training, "
    "float momentum, float eps) -> (Tensor out, Tensor mean, Tensor rstd)"
)
define(
    "fragment_aggregate_backward(Tensor grad_out, Tensor y, Tensor? out, Tensor widths, Tensor probs, Tensor weight, "
    "Tensor bias, Tensor mean, Tensor rstd, Tensor? index, SymInt out_channels, SymInt residual_channels, "
    "bool training, bool[5] output_mask) "
    "-> (Tensor grad_y, Tensor grad_probs, Tensor grad_weight, Tensor grad_bias, Tensor grad_residual)"
)


def fragment_aggregate(
    y: Tensor,  # [N, C_y, H, W]
    widths: Tensor,  # [n]
    probs: Tensor,  # [K]
    weight: Tensor,  # [n, C]
    bias: Tensor,  # [n, C]
    running_mean: Tensor | None,  # [n, C]
    running_var: Tensor | None,  # [n, C]
    *,
    residual: Tensor | None = None,  # [N, C_r, H, W]
    relu: bool = False,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    index: Tensor | None = None,  # [K]
    out_channels: int | None = None,
) -> Tensor:
    """Return the probability-weighted sum of normalised channel prefixes of `y`, with residual and ReLU if asked for.

    Running statistics are updated in place in training. An empty batch gives an empty result and leaves them alone.

    Args:
        y: [N, C_y, H, W], a convolution's output with at least max(sampled widths) channels.
        widths: [n] int32 or int64 on the device of `y`, each in 1..C_y.
        probs: [K], weight of each fragment in the sum, dtype of `weight`.
        weight, bias: [n, C], one row per width, valid in its first `widths[row]` entries; the rest must be finite.
            float32 for float32, bfloat16 and float16 data, float64 for float64.
        running_mean, running_var: like `weight`, or both None (training only).
        residual: [N, C_r, H, W] of the dtype of `y`, any C_r.
        relu: rectify the result.
        training: use batch statistics.
        momentum, eps: as in torch.nn.BatchNorm2d.
        index: [K] int64, the row that each fragment uses; None means row k for fragment k, so n = K.
        out_channels: channels of the sum, at least the largest sampled width (not checked: it lives on the device);
            channels from that width on are zero. None reads the width on the host, which waits for the device once.

    Returns:
        [N, max(out_channels, C_r), H, W], dtype and memory format of `y`.

    Raises:
        ValueError: a shape or dtype differs from the above, evaluation without running statistics, or training with one
            value per channel.

    Example:
        >>> y, table = torch.randn(2, 8, 4, 4), torch.ones(2, 8)
        >>> probs, widths = torch.tensor([0.25, 0.75]), torch.tensor([3, 6])
        >>> fragment_aggregate(y, widths, probs, table, table, None, None, relu=True).shape
        torch.Size([2, 6, 4, 4])
    """
    if out_channels is None:
        out_channels = _largest_width(y, widths, probs, index)
    _check(y, widths, probs, weight, bias, running_mean, running_var, residual, index, out_channels, training)
    out, _, _ = torch.ops.tas_fast.fragment_aggregate.default(
        y,
        widths,
        probs,
        weight,
        bias,
        running_mean,
        running_var,
        residual,
        index,
        out_channels,
        relu,
        training,
        momentum,
        eps,
    )
    return out


_wrong = partial(wrong, "fragment_aggregate")


def _largest_width(y: Tensor, widths: Tensor, probs: Tensor, index: Tensor | None) -> int:
    _check_sampling(y, widths, probs, index)
    largest = int((widths if index is None else widths[index]).max())
    if largest > y.size(1):
        raise _wrong("y", f"[N, C, H, W] with C >= max(widths) = {largest}", tuple(y.shape))
    return largest


def _check_sampling(y: Tensor, widths: Tensor, probs: Tensor, index: Tensor | None) -> None:
    if y.dim() != 4 or not y.is_floating_point():
        raise _wrong("y", "floating-point [N, C, H, W]", described(y))
    if widths.dim() != 1 or widths.dtype not in (torch.int32, torch.int64):
        raise _wrong("widths", "int32 or int64 [n]", described(widths))
    if index is not None and (index.dim() != 1 or index.dtype != torch.int64):
        raise _wrong("index", "int64 [K]", described(index))
    fragments = widths.size(0) if index is None else index.size(0)
    if fragments < 1 or probs.shape != (fragments,):
        raise _wrong("probs", f"[K] with K = {fragments} fragments, at least one", tuple(probs.shape))


def _check(
    y: Tensor,
    widths: Tensor,
    probs: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    residual: Tensor | None,
    index: Tensor | None,
    out_channels: int,
    training: bool,
) -> None:
    _check_sampling(y, widths, probs, index)
    if out_channels < 1:
        raise _wrong("out_channels", "at least 1", out_channels)
    rows, read, dtype = widths.size(0), min(y.size(1), out_channels), accumulation_dtype(y.dtype)
    tables = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
    for name, table in tables.items():
        if table is None:
            if not training:
                raise _wrong(name, "given in evaluation", None)
        elif table.dim() != 2 or table.size(0) != rows or table.size(1) < read:
            raise _wrong(name, f"[n, C] with n = {rows} and C >= {read}", tuple(table.shape))
        elif table.dtype != dtype:
            raise _wrong(name, f"{dtype} for {y.dtype} data", table.dtype)
    if probs.dtype != dtype:
        raise _wrong("probs", f"{dtype} for {y.dtype} data", probs.dtype)
    if (running_mean is None) != (running_var is None):
        raise _wrong("running_mean and running_var", "both given or both None", "one of them")
    if residual is not None:
        if residual.dim() != 4 or residual.size(0) != y.size(0) or residual.shape[2:] != y.shape[2:]:
            raise _wrong("residual", f"[N, C_r, H, W] that fits y {tuple(y.shape)}", tuple(residual.shape))
        if residual.dtype != y.dtype:
            raise _wrong("residual", f"{y.dtype} like y", residual.dtype)
    if training and y.size(0) * y.size(2) * y.size(3) == 1:
        raise _wrong("y", "more than one value per channel in training", tuple(y.shape))


def fragment_aggregate_reference(
    y: Tensor,
    widths: Tensor,
    probs: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    residual: Tensor | None,
    index: Tensor | None,
    out_channels: int,
    relu: bool,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    read, rows = min(y.size(1), out_channels), _rows(widths, index)
    x = y[:, :read]
    shift = _pick(bias, rows, read)
    if training:
        x, mean, var = centre(x, weight.dtype)
        samples = x.numel() // read
        if running_mean is not None and running_var is not None and samples > 0:
            unbiased = var * (samples / max(samples - 1, 1))
            update_running([(running_mean, mean), (running_var, unbiased)], widths, index, momentum)
        rstd = (var + eps).rsqrt()
        scale = _pick(weight, rows, read) * rstd
    else:
        mean, rstd = _pick(running_mean, rows, read), (_pick(running_var, rows, read) + eps).rsqrt()
        scale = _pick(weight, rows, read) * rstd
        shift = shift - scale * mean
        x = x.to(weight.dtype)
    bands = probs[:, None, None] * bands_of(widths[rows], out_channels, read, weight.dtype)
    matrix, offset = (bands * scale[:, None]).sum(0), (bands * shift[:, None]).sum(0)
    single = rows.size(0) == 1
    out = map_channels(matrix, x, single)
    out += (offset[0] if single else offset.sum(1))[:, None, None]
    out = pad_channels(out, out_channels if residual is None else max(out_channels, residual.size(1)))
    if residual is not None:
        out[:, : residual.size(1)] += residual
    if relu:
        out.relu_()
    return out.to(y.dtype).contiguous(memory_format=layout_of(y)), mean, rstd


def fragment_aggregate_backward_reference(
    grad_out: Tensor,
    y: Tensor,
    out: Tensor | None,
    widths: Tensor,
    probs: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    index: Tensor | None,
    out_channels: int,
    residual_channels: int,
    training: bool,
    output_mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    read, rows, layout = rstd.size(-1), _rows(widths, index), layout_of(y)
    single = rows.size(0) == 1
    needs_y, needs_probs, needs_weight, needs_bias, needs_residual = output_mask
    masked = grad_out if out is None else torch.ops.aten.threshold_backward(grad_out, out, 0)
    g = masked[:, : read if single else out_channels].to(weight.dtype).contiguous(memory_format=layout)
    x = y[:, :read] - mean[:, None, None] if training else y[:, :read].to(weight.dtype)

    bands = bands_of(widths[rows], out_channels, read, weight.dtype)
    gamma, beta = _pick(weight, rows, read), _pick(bias, rows, read)
    g_sum = g.sum((0, 2, 3)).view(1, -1) if single else g.sum((0, 2, 3)).view(-1, 1)
    products = products_of(g, x, single)
    normalised = rstd * products if training else rstd[:, None] * (products - mean[:, None] * g_sum)
    by_bias, by_weight = (bands * g_sum).sum(1), (bands * normalised).sum(1)  # A_k^T G, and the same of X: [K, R]
    scale = probs[:, None] * gamma * rstd

    grad_y, grad_probs, grad_weight, grad_bias, grad_residual = (weight.new_empty(0) for _ in range(5))
    if needs_probs:
        grad_probs = (gamma * by_weight + beta * by_bias).sum(1)
    if needs_weight:
        grad_weight = _place(probs[:, None] * by_weight, weight, rows)
    if needs_bias:
        grad_bias = _place(probs[:, None] * by_bias, bias, rows)
    if needs_residual:
        grad_residual = masked[:, :residual_channels].contiguous(memory_format=layout)
    if needs_y:
        matrix = (bands * scale[:, None]).sum(0)
        grad_x = map_channels(matrix if single else matrix.T, g, single)
        if training:
            samples = max(x.numel() // read, 1)
            grad_x -= ((scale * by_bias).sum(0) / samples)[:, None, None]
            grad_x.addcmul_(x, (rstd * (scale * by_weight).sum(0))[:, None, None], value=-1 / samples)
        grad_y = pad_channels(grad_x, y.size(1)).to(y.dtype).contiguous(memory_format=layout)
    return grad_y, grad_probs, grad_weight, grad_bias, grad_residual


def _rows(widths: Tensor, index: Tensor | None) -> Tensor:
    return torch.arange(widths.size(0), device=widths.device) if index is None else index


def _pick(table: Tensor | None, rows: Tensor, read: int) -> Tensor:
    assert table is not None
    return table[:, :read].index_select(0, rows)


def _place(values: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    """Add the rows of `values` into a zero tensor shaped like `table`: the transpose of `_pick`."""
    return torch.zeros_like(table).index_add_(0, rows, F.pad(values, (0, table.size(1) - values.size(1))))


@fake("fragment_aggregate")
def _(
    y: Tensor,
    widths: Tensor,
    probs: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    residual: Tensor | None,
    index: Tensor | None,
    out_channels: int,
    relu: bool,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    _check(y, widths, probs, weight, bias, running_mean, running_var, residual, index, out_channels, training)
    channels = out_channels if residual is None else max(out_channels, residual.size(1))
    read = min(y.size(1), out_channels)
    shape = (read,) if training else (probs.size(0), read)
    return _empty(y, channels), weight.new_empty(shape), weight.new_empty(shape)


@fake("fragment_aggregate_backward")
def _(
    grad_out: Tensor,
    y: Tensor,
    out: Tensor | None,
    widths: Tensor,
    probs: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    index: Tensor | None,
    out_channels: int,
    residual_channels: int,
    training: bool,
    output_mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    needs_y, needs_probs, needs_weight, needs_bias, needs_residual = output_mask
    return (
        _empty(y, y.size(1)) if needs_y else weight.new_empty(0),
        torch.empty_like(probs) if needs_probs else weight.new_empty(0),
        torch.empty_like(weight) if needs_weight else weight.new_empty(0),
        torch.empty_like(bias) if needs_bias else weight.new_empty(0),
        _empty(y, residual_channels) if needs_residual else weight.new_empty(0),
    )


def _empty(y: Tensor, channels: int) -> Tensor:
    shape = (y.size(0), channels, y.size(2), y.size(3))
    return torch.empty(shape, dtype=y.dtype, device=y.device, memory_format=layout_of(y))


class _FragmentAggregate(torch.autograd.Function):
    """The operator with its gradient; torch.library.register_autograd refuses operators that update arguments."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
        out, mean, rstd = _below_autograd(*args)
        y, widths, probs, weight, bias, _, _, residual, index, ctx.out_channels, ctx.relu, ctx.training, _, _ = args
        ctx.residual_channels = 0 if residual is None else residual.size(1)
        ctx.save_for_backward(y, out if ctx.relu else None, widths, probs, weight, bias, mean, rstd, index)
        ctx.mark_non_differentiable(mean, rstd)
        ctx.set_materialize_grads(False)
        return out, mean, rstd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad_out is None:
            return (None,) * 14
        needs_y, _, needs_probs, needs_weight, needs_bias, _, _, needs_residual, *_ = ctx.needs_input_grad
        mask = [needs_y, needs_probs, needs_weight, needs_bias, needs_residual and ctx.relu]
        grads = torch.ops.tas_fast.fragment_aggregate_backward.default(
            grad_out, *ctx.saved_tensors, ctx.out_channels, ctx.residual_channels, ctx.training, mask
        )
        grad_y, grad_probs, grad_weight, grad_bias, grad_residual = (
            grad if needed else None for grad, needed in zip(grads, mask, strict=True)
        )
        if needs_residual and not ctx.relu:
            grad_residual = grad_out[:, : ctx.residual_channels]
        return grad_y, None, grad_probs, grad_weight, grad_bias, None, None, grad_residual, *(None,) * 6


def _below_autograd(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    training, running = args[11], args[5:7]
    if training and running[0] is not None:
        # Kernels write through pointers: without this, autograd would not notice that a saved statistic has changed.
        torch.autograd.graph.increment_version(running)
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.tas_fast.fragment_aggregate.default(*args)


def _autograd(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    differentiable = (args[0], args[2], args[3], args[4], args[7])  # y, probs, weight, bias, residual
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in differentiable):
        return _FragmentAggregate.apply(*args)
    return _below_autograd(*args)


library.impl("fragment_aggregate", _autograd, "Autograd")

implement("fragment_aggregate", fragment_aggregate_reference)
implement("fragment_aggregate_backward", fragment_aggregate_backward_reference)
