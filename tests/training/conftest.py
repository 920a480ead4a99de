"""The shipped tokenizer, a narrow network of the base's form with weights at random, and few written conversations."""

import numpy as np
import pytest
from tokenizers import Tokenizer

from bespeak.models.catalogue import asset_folder
from bespeak.rewriting.gemma import HEAD, N_HEADS, N_LAYERS
from bespeak.rewriting.model import MODEL
from bespeak.training import mixture, reader
from bespeak.training.scenarios import read_conversations

WIDTH, WIDE = 16, 24
SHAPES = {
    "attn_q": (N_HEADS * HEAD, WIDTH), "attn_k": (HEAD, WIDTH), "attn_v": (HEAD, WIDTH),
    "attn_output": (WIDTH, N_HEADS * HEAD), "ffn_gate": (WIDE, WIDTH), "ffn_up": (WIDE, WIDTH),
    "ffn_down": (WIDTH, WIDE),
}  # fmt: skip


WRITTEN = """\
S I live in Ghent.
Q two person tent
A The Vango Banshee is a two person tent, and it is sold all over the country.
> is {it=the Vango Banshee} waterproof
= garden gnome
> shops {near me=in Ghent}

S I am vegan.
> {=vegan }chili
"""
QUERIES = {
    "keywords": ["oak table", "bread knife"],
    "chat": ["how are you"],
    "nothing": ["how much are they"],
    "greetings": ["hello => Hi!"],
}


@pytest.fixture
def written():
    """Two written conversations."""
    return list(read_conversations(WRITTEN, "tents.txt"))


@pytest.fixture
def little_written(written, monkeypatch):
    """In place of the shipped conversations and queries, which take a minute."""
    for module in (mixture, reader):
        monkeypatch.setattr(module, "written_conversations", lambda: list(written))
        monkeypatch.setattr(module, "written_queries", lambda: QUERIES)


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
