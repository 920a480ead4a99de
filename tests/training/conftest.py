"""The shipped tokenizer, and a network of the base's form that is narrow, with weights at random."""

import numpy as np
import pytest
from tokenizers import Tokenizer

from bespeak.models.catalogue import asset_folder
from bespeak.rewriting.gemma import HEAD, N_HEADS, N_LAYERS
from bespeak.rewriting.model import MODEL

WIDTH, WIDE = 16, 24
SHAPES = {
    "attn_q": (N_HEADS * HEAD, WIDTH), "attn_k": (HEAD, WIDTH), "attn_v": (HEAD, WIDTH),
    "attn_output": (WIDTH, N_HEADS * HEAD), "ffn_gate": (WIDE, WIDTH), "ffn_up": (WIDE, WIDTH),
    "ffn_down": (WIDTH, WIDE),
}  # fmt: skip


@pytest.fixture(scope="session")
def tokenizer():
    return Tokenizer.from_file(str(asset_folder("onnx_models") / MODEL / "tokenizer.json"))


@pytest.fixture(scope="session")
def network(tokenizer):
    pytest.importorskip("torch", reason="torch is not installed (extra `train`)")
    from bespeak.training.network import NORMS, Network

    draw = np.random.default_rng(0)
    weights = {"embedding": draw.normal(0, 0.3, (tokenizer.get_vocab_size(), WIDTH)), "output_norm": np.ones(WIDTH)}
    for layer in range(N_LAYERS):
        for name, (n_out, n_in) in SHAPES.items():
            weights[f"blk.{layer}.{name}"] = draw.normal(0, n_in**-0.5, (n_out, n_in))
        for name in NORMS:
            weights[f"blk.{layer}.{name}"] = np.ones(HEAD if name in ("attn_q_norm", "attn_k_norm") else WIDTH)
    return Network({name: array.astype(np.float32) for name, array in weights.items()})
