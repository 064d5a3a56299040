"""Products of matrices."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from touchstone.models.onnx.registry import operator


@operator("MatMul")
def matmul(a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


@operator("Gemm", since=7)
def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    a = a.t() if transA else a
    if alpha == beta == 1 and transB and (c is None or c.shape == b.shape[:1]):
        return functional.linear(a, b, c)
    product = a @ (b.t() if transB else b)
    product = product if alpha == 1 else alpha * product
    return product if c is None else product + (c if beta == 1 else beta * c)


@operator("Einsum", since=12)
def einsum(*xs: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation, *xs)


@operator("Attention", since=23)
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int | None = None,
    q_num_heads: int | None = None,
    qk_matmul_output_mode: int = 0,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
    outputs: int = 1,
) -> Tensor:
    if outputs > 1 or softcap:
        raise ValueError("a softcap, and outputs beside the attended values, are not supported")
    flat = query.ndim == 3
    q, k, v = (
        _heads(x, heads) for x, heads in ((query, q_num_heads), (key, kv_num_heads), (value, kv_num_heads))
    )
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    if is_causal:
        mask = _causal(q, k, mask)
    y = functional.scaled_dot_product_attention(q, k, v, mask, scale=scale)
    return y.transpose(1, 2).flatten(2) if flat else y


def _heads(x: Tensor, heads: int | None) -> Tensor:
    """(B, T, heads * D) as (B, heads, T, D)."""
    return x if x.ndim == 4 or heads is None else x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def _causal(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    past = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    if mask is None:
        return past
    return mask & past if mask.dtype == torch.bool else torch.where(past, mask, -torch.inf)
