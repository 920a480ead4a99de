"""The architecture of Gemma 3 270M (Gemma 3 Technical Report, 2025), which the rewriter is built on.

18 layers of width 640; four query heads share one key-value head of 256; every sixth layer uses the global rotary base.
"""

from __future__ import annotations

N_LAYERS, WIDTH, N_HEADS, HEAD = 18, 640, 4, 256
GLOBAL_EVERY = 6  # layers 6, 12 and 18 use the global rotary base
ROTARY_BASES = {"global": 1e6, "local": 1e4}
EPSILON = 1e-6
ADAPTER_SCALE = 2.0  # LoRA's alpha over rank
ADAPTED = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""The matrices that an adapter changes: their names in the GGUF file, and in the adapter."""


def adapter_key(layer: int, name: str) -> str:
    """The name that an adapter gives to a layer's matrix.

    >>> adapter_key(6, "attn_q")
    'model.layers.6.self_attn.q_proj'
    """
    return f"model.layers.{layer}.{ADAPTED[name]}"
