"""The base with a LoRA adapter (Hu et al., 2021) in torch, for training. Needs the extra `train`.

It computes what `bespeak.rewriting.network` does, without rounding. The tokens of many sequences follow one another, so
that nothing is padded; only the attention treats each sequence separately.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812

from bespeak.rewriting.gemma import (
    ADAPTED,
    ADAPTER_SCALE,
    EPSILON,
    GLOBAL_EVERY,
    HEAD,
    N_HEADS,
    N_LAYERS,
    ROTARY_BASES,
    WIDTH,
    adapter_key,
)

if TYPE_CHECKING:
    from bespeak.rewriting.weights import Base
    from bespeak.training.packing import Packed

Tensor: TypeAlias = torch.Tensor
Adapter: TypeAlias = dict[str, Tensor]
"""Named as in the shipped file: `model.layers.N.….A` (rank, n_in) and `….B` (n_out, rank), float32."""

FIRST_ADAPTED = 6
"""The layers below mostly encode single words; without adapters they need no gradients."""
RANK = 16
MATRICES = tuple(ADAPTED)
NORMS = ("attn_norm", "attn_q_norm", "attn_k_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")


def new_adapter(shapes: Mapping[str, tuple[int, int]], seed: int) -> Adapter:
    """A random A and a zero B, which leave the base as it is. `shapes` are (n_out, n_in) by name."""
    generator = torch.Generator().manual_seed(seed)
    adapter: Adapter = {}
    for name, (n_out, n_in) in shapes.items():
        adapter[f"{name}.A"] = torch.randn(RANK, n_in, generator=generator) / n_in**0.5
        adapter[f"{name}.B"] = torch.zeros(n_out, RANK)
    return adapter


class Network:
    """The base with fixed weights; may be used from several threads."""

    def __init__(self, weights: Mapping[str, npt.NDArray[np.float32]]) -> None:
        self._weights = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in weights.items()}

    @classmethod
    def of_base(cls, base: Base) -> Network:
        """The network with the base's weights. Raises ModelError."""
        weights = {"embedding": base.embedding(), "output_norm": base.tensor("output_norm")}
        for layer in range(N_LAYERS):
            weights |= {f"blk.{layer}.{name}": base.tensor(f"blk.{layer}.{name}") for name in (*MATRICES, *NORMS)}
        return cls(weights)

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(n_out, n_in) of each adapted matrix, by its name in an adapter."""
        found = {}
        for layer in range(FIRST_ADAPTED, N_LAYERS):
            for name in MATRICES:
                n_out, n_in = self._weights[f"blk.{layer}.{name}"].shape
                found[adapter_key(layer, name)] = (n_out, n_in)
        return found

    def loss(self, sequences: Sequence[Packed], adapter: Mapping[str, Tensor]) -> tuple[Tensor, int]:
        """The summed cross-entropy of all labelled tokens, in nats, and their number."""
        scores, labels = self._scores(sequences, adapter)
        return F.cross_entropy(scores, labels, reduction="sum"), len(labels)

    def log_likelihoods(self, sequence: Packed, adapter: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """`(n_branches,)` each: ln P of each branch's labelled tokens, and their number."""
        scores, labels = self._scores([sequence], adapter)
        branches = torch.from_numpy(sequence.branches[sequence.labels >= 0]) - 1
        losses = F.cross_entropy(scores, labels, reduction="none")
        none = torch.zeros(int(branches.max()) + 1)
        return none.index_add(0, branches, -losses), none.index_add(0, branches, torch.ones_like(losses))

    def _scores(self, sequences: Sequence[Packed], adapter: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Scores `(n_labelled, n_vocabulary)` of what follows each labelled token, and the labels `(n_labelled,)`."""
        ids = torch.from_numpy(np.concatenate([sequence.token_ids for sequence in sequences]))
        labels = torch.from_numpy(np.concatenate([sequence.labels for sequence in sequences]))
        wanted = labels >= 0
        final = self._read(ids, Positions(sequences), adapter)[wanted]
        return F.linear(final, self._weights["embedding"]), labels[wanted]

    def _read(self, ids: Tensor, positions: Positions, adapter: Mapping[str, Tensor]) -> Tensor:
        """`(n_tokens, 640)`, normed."""
        total = F.embedding(ids, self._weights["embedding"]) * WIDTH**0.5
        for layer in range(N_LAYERS):
            total = self._layer(layer, total, positions, adapter)
        return self._norm(total, "output_norm")

    def _layer(self, layer: int, total: Tensor, positions: Positions, adapter: Mapping[str, Tensor]) -> Tensor:
        at = f"blk.{layer}"

        def times(x: Tensor, name: str) -> Tensor:
            y = F.linear(x, self._weights[f"{at}.{name}"])
            key = adapter_key(layer, name)
            if f"{key}.A" not in adapter:
                return y
            return torch.addmm(y, F.linear(x, adapter[f"{key}.A"]), adapter[f"{key}.B"].T, alpha=ADAPTER_SCALE)

        normed = self._norm(total, f"{at}.attn_norm")
        query = self._norm(times(normed, "attn_q").unflatten(1, (N_HEADS, HEAD)), f"{at}.attn_q_norm")
        key = self._norm(times(normed, "attn_k").unflatten(1, (1, HEAD)), f"{at}.attn_k_norm")
        reach = "local" if (layer + 1) % GLOBAL_EVERY else "global"
        seen = positions.attend(positions.rotate(query, reach), positions.rotate(key, reach), times(normed, "attn_v"))
        total = total + self._norm(times(seen, "attn_output"), f"{at}.post_attention_norm")
        normed = self._norm(total, f"{at}.ffn_norm")
        gated = F.gelu(times(normed, "ffn_gate"), approximate="tanh") * times(normed, "ffn_up")
        return total + self._norm(times(gated, "ffn_down"), f"{at}.post_ffw_norm")

    def _norm(self, x: Tensor, name: str) -> Tensor:
        normed: Tensor = _Norm.apply(x, self._weights[name])
        return normed


class _Norm(torch.autograd.Function):  # type: ignore[misc, unused-ignore]  # Any where torch is not installed
    """x divided by its root mean square, times a fixed scale; on a CPU seven times faster than torch's own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = size.square_().div_(x.shape[-1]).add_(EPSILON).rsqrt_()
        unit = x * inverse
        ctx.save_for_backward(unit, inverse, scale)
        return unit * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        unit, inverse, scale = ctx.saved_tensors
        gradient = gradients[0] * scale
        along = torch.linalg.vecdot(gradient, unit).unsqueeze(-1).div_(unit.shape[-1])
        return gradient.addcmul_(unit, along, value=-1).mul_(inverse), None


class Positions:
    """Each token's position in its sequence, and the tokens that it attends to."""

    def __init__(self, sequences: Sequence[Packed]) -> None:
        self._sizes = [len(sequence.token_ids) for sequence in sequences]
        self._masks = [torch.from_numpy(sequence.mask()) for sequence in sequences]
        positions = np.concatenate([sequence.positions for sequence in sequences])
        self._tables: dict[str, tuple[Tensor, Tensor]] = {}
        for name, base in ROTARY_BASES.items():
            angles = positions[:, None, None] / base ** (np.arange(0, HEAD, 2) / HEAD)  # (n_tokens, 1, HEAD / 2)
            cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
            self._tables[name] = torch.from_numpy(cos), torch.from_numpy(sin)

    def rotate(self, x: Tensor, reach: str) -> Tensor:
        """`(n_tokens, n_heads, HEAD)`: x rotated by position (rotary embedding)."""
        cos, sin = self._tables[reach]
        left, right = x.chunk(2, dim=-1)
        return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """`(n_tokens, N_HEADS * HEAD)`."""
        rows = []
        parts = (query.split(self._sizes), key.split(self._sizes), value.split(self._sizes), self._masks)
        for q, k, v, mask in zip(*parts, strict=True):
            scores = torch.matmul(q.transpose(0, 1), k[:, 0].T) * HEAD**-0.5  # (N_HEADS, n, n)
            weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)
            rows.append(torch.matmul(weights, v).transpose(0, 1).flatten(1))
        return torch.cat(rows)


def to_arrays(adapter: Adapter) -> dict[str, Any]:
    """The adapter as in the shipped file: float16."""
    return {name: tensor.detach().numpy().astype(np.float16) for name, tensor in adapter.items()}
