"""Writes the cards of trained models: what they are, their data, how they were made, and their scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from bespeak.session.reader import HEADS
from bespeak.session.sections import MAX_TOKENS
from bespeak.training.candidates import SAMPLES
from bespeak.training.options import CrossEntropies, GainOptions, MeanCosines, MeanGains, ReaderScores, TrainingOptions

LICENCES = {
    "canard": "CC BY-SA 4.0 (aagohary/canard, dev split)",
    "canard-train": "CC BY-SA 4.0 (aagohary/canard, train split)",
    "cast2019": "MIT (TREC CAsT)",
    "cast2020": "MIT (TREC CAsT)",
    "cast2021": "MIT (TREC CAsT)",
    "cast2022": "MIT (TREC CAsT)",
    "ikat2024": "MIT (irlabamsterdam/iKAT)",
    "ikat2025": "MIT (irlabamsterdam/iKAT)",
    "camrest": "CC BY 4.0 (terryqj0107/GECOR)",
    "pacific": "MIT (dengyang17/PACIFIC)",
    "qulac": "MIT (aliannejadi/qulac)",
    "qrecc": "CC BY-SA 3.0 (apple/ml-qrecc)",
    "cqr": "MIT-0 (alexa/alexa-dataset-contextual-query-rewrite)",
    "followup": "Apache-2.0 (SivilTaram/FollowUp)",
    "mtrag": "Apache-2.0 (IBM/mt-rag-benchmark); rewrites by a language model, as far as is known",
    "made": "made from lists by bespeak (Apache-2.0)",
    "written": "conversations written for bespeak, with the help of a language model (Apache-2.0)",
    "plain": "rewrites of the other sources, without a session",
}
"""Licences of the sources that Bespeak knows."""

ADAPTER_CARD = """\
# An adapter of gemma3-270m-rewriter

Rewrites a query of a conversation so that it stands alone, from its earlier turns and the user's statements about
themselves. English.

**This is a modified version of Gemma 3 270M**: it was trained on top of the base's weights, and is subject to the Gemma
Terms of Use ([GEMMA_TERMS.md](GEMMA_TERMS.md), [NOTICE](NOTICE)), which must accompany it.

`adapter.npz`: LoRA, rank 16, scale 2.0, on all matrices of layers 6 to 17; float16, `model.layers.N.….A` (rank, in) and
`.B` (out, rank). `tokenizer.json` and `vocabulary.npz` are those of the shipped model.

## How it was made
    {command}

{targets} targets, seed {seed}, {passes} passes.

| source | targets | licence |
| --- | --- | --- |
{sources}

| target | how many |
| --- | --- |
{kinds}

| changed in their conversations | targets |
| --- | --- |
{changes}

## Scores
Cross-entropy of {held_out} held-out rewrites, nats per token: {adapter:.3f}; the base without the adapter {base:.3f}.
Retrieval quality matters more: measure it with `bespeak evaluate`.

## Limits
English only. It was trained to use words of the query, the turns and the statements, and may still choose wrong ones.
"""

GAIN_SECTION = """
## Second stage
    {command}

The adapter described above was trained further by minimum risk. For {n_turns} queries, the person's rewrite, the
adapter's own and {samples} sampled ones were compared; rewrites that find the answer given in the conversation, among
all answers of the data, became likelier. Training used the {n_learnt} queries whose rewrites differ in this, and
ordinary pairs. The scores above are from before this stage.

| source | queries | licence |
| --- | --- | --- |
{sources}

Mean gain of all {n_turns} queries, which are training queries (1 / log2(1 + rank of the answer), over vectors, BM25 and
the rewrite's vector alone): the query as typed {query:.3f}, the person's rewrite {person:.3f}, the adapter's rewrite
before {before:.3f} and after {after:.3f}.
"""

CONTEXT_CARD = """\
# bge-small-en-v1.5-context-int8

Turns a query and the session before it (at most {max_tokens} tokens: the query, the last turn, earlier queries,
statements) into a vector that compares with the document vectors of bge-small-en-v1.5-int8. English.

| file | content |
| --- | --- |
| `model.onnx` | with the inputs, output and format of bge-small-en-v1.5-int8 |
| `tokenizer.json` | the tokenizer of bge-small-en-v1.5-int8 |
| `config.json` | the encoder it belongs to, pooling by the first token, the query prefix |

**Origin.** BAAI/bge-small-en-v1.5, MIT licence, as shipped with Bespeak. A LoRA adapter of rank 16 was trained on the
matrices of layers 2 to 11, and merged. These matrices are int8 by output channel, with one bit unused.

## How it was made
    {command}

It was trained towards the vectors of a person's rewrite (1 - cosine) and, where the conversation continues, of the
answer, against {others} negatives (InfoNCE, temperature {temperature}), on {n_examples} examples. The project's
`docs/training.md` describes how conversations are varied.

| source | examples | licence |
| --- | --- | --- |
{sources}

{terms}

## Scores
Mean cosine to the vectors of {n_held_out} held-out rewrites: the query as typed {query:.3f}, with its session
{context:.3f}. Its effect on retrieval: `docs/ranking.md`.

## Limits
English only. It reads 60 tokens of the last answer, and no other answer. Its vector does not tell which words it
depends on.
"""

READER_CARD = """\
# context-reader

Reads a query with the session before it (at most {max_tokens} tokens: the query, the last turn, earlier queries,
statements) and says what of it the query leans on. English.

| file | content |
| --- | --- |
| `model.onnx` | in: `input_ids`, `attention_mask`, `token_type_ids`; out: `vector`, `heads` (tokens, {n_heads}) |
| `tokenizer.json` | the tokenizer of bge-small-en-v1.5-int8 |
| `config.json` | the encoder it belongs to, the query prefix |

Tokens of the session have type 1. `vector` compares with the document vectors of bge-small-en-v1.5-int8; `heads` are
logits of {heads}.

**Origin.** BAAI/bge-small-en-v1.5, MIT licence, as shipped with Bespeak: a student of {n_layers} of its 12 layers. All
their weights were trained; the embeddings are as they were. Matrices are int8 by output channel, with one bit unused.

## How it was made
    {command}

On {n_examples} examples. The vector was trained towards the encoder's vector of a person's rewrite, or of the query
itself where nothing is added (1 - cosine), and, where the conversation continues, of the answer, against {n_negatives}
negatives (InfoNCE, temperature {temperature}); the heads by cross-entropy. The project's `docs/training.md` describes
how conversations are varied.

| source | examples | licence |
| --- | --- | --- |
{sources}

{terms}

## Scores
On {n_held_out} held-out queries: mean cosine to the vector of the rewrite {context:.3f} (the query as typed
{query:.3f}); average precision of the words that a person added {words:.3f}; queries that lean on something are told
from others with an area under the ROC curve of {leaning:.3f}. Its effect on retrieval: `docs/ranking.md`.

## Limits
English only. It reads 60 tokens of the last answer, and no other answer.
"""


SHARE_ALIKE = "As its weights derive from CC BY-SA data, the model is offered under CC BY-SA 4.0."
OTHER_TERMS = "The model's licence follows from the licences of these data and the MIT licence of its base."


def context_card(
    options: TrainingOptions, counts: Mapping[str, int], scores: MeanCosines, n_others: int, temperature: float
) -> str:
    """`counts`: examples by source. `n_others` and `temperature` are those of the contrastive loss."""
    files = [f"--data {path.name}" for path in options.data]
    held_out = [f"--held-out {options.held_out.name}"] if options.held_out else []
    how = [f"--passes {options.passes:g}", f"--seed {options.seed}"]
    return CONTEXT_CARD.format(
        command=" ".join(["bespeak models train-context", *files, *held_out, *how]),
        max_tokens=MAX_TOKENS,
        others=n_others,
        temperature=temperature,
        n_examples=sum(counts.values()),
        terms=SHARE_ALIKE if any("CC BY-SA" in LICENCES.get(name, "") for name in counts) else OTHER_TERMS,
        sources=licensed(counts),
        **asdict(scores),
    )


def reader_card(
    options: TrainingOptions, counts: Mapping[str, int], scores: ReaderScores, recipe: Mapping[str, float]
) -> str:
    """`counts`: examples by source; `recipe`: `n_layers`, `n_negatives` and `temperature`."""
    files = [f"--data {path.name}" for path in options.data]
    held_out = [f"--held-out {options.held_out.name}"] if options.held_out else []
    steps = [f"--steps {options.steps}"] if options.steps else []
    how = [f"--passes {options.passes:g}", *steps, f"--seed {options.seed}"]
    return READER_CARD.format(
        command=" ".join(["bespeak models train-reader", *files, *held_out, *how]),
        max_tokens=MAX_TOKENS,
        heads=", ".join(HEADS),
        n_heads=len(HEADS),
        n_examples=sum(counts.values()),
        terms=SHARE_ALIKE if any("CC BY-SA" in LICENCES.get(name, "") for name in counts) else OTHER_TERMS,
        sources=licensed(counts),
        **recipe,
        **asdict(scores),
    )


def gain_card(began: str, options: GainOptions, counts: Mapping[str, int], scores: MeanGains) -> str:
    """The card of the adapter that the stage started from, `began`, with a section on this stage."""
    files = [f"--data {path.name}" for path in options.data]
    adapter = [f"--adapter {options.adapter.name}"] if options.adapter else []
    how = [f"--turns {options.turns}", f"--seed {options.seed}"]
    return (
        began.rstrip("\n")
        + "\n"
        + GAIN_SECTION.format(
            command=" ".join(["bespeak models train-gain", *files, *adapter, *how]),
            samples=SAMPLES,
            sources=licensed(counts),
            **asdict(scores),
        )
    )


def card(options: TrainingOptions, counts: Mapping[str, Mapping[str, int]], scores: CrossEntropies) -> str:
    """`counts`: targets by source, kind and change."""
    files = [f"--data {path.name}" for path in options.data]
    held_out = [f"--held-out {options.held_out.name}"] if options.held_out else []
    how = [f"--passes {options.passes:g}", f"--seed {options.seed}"]
    return ADAPTER_CARD.format(
        command=" ".join(["bespeak models train", *files, *held_out, *how]),
        targets=sum(counts["source"].values()),
        seed=options.seed,
        passes=f"{options.passes:g}",
        sources=licensed(counts["source"]),
        kinds=rows(counts["kind"]),
        changes=rows(counts["change"]),
        held_out=scores.n_held_out,
        adapter=scores.adapter,
        base=scores.base,
    )


def rows(counts: Mapping[str, int]) -> str:
    return "\n".join(f"| {name} | {n} |" for name, n in counts.items())


def licensed(counts: Mapping[str, int]) -> str:
    return "\n".join(f"| {name} | {n} | {LICENCES.get(name, 'as its owner says')} |" for name, n in counts.items())
