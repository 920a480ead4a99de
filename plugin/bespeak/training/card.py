"""The card of a trained adapter: what it is, what went in, how it was made, what it reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from bespeak.session.context import MAX_TOKENS
from bespeak.training.candidates import SAMPLES
from bespeak.training.options import CrossEntropies, GainOptions, MeanCosines, MeanGains, TrainingOptions

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
}
"""Of the sources that Bespeak knows; what another one is under, its owner knows."""

TEXT = """\
# An adapter of gemma3-270m-rewriter

Rewrites a query of a conversation, from its earlier turns and from what the user said of themselves, to one that stands
alone. English.

**This is a modified version of Gemma 3 270M**: it was trained on top of the base's weights, and falls under the Gemma
Terms of Use ([GEMMA_TERMS.md](GEMMA_TERMS.md), [NOTICE](NOTICE)), which travel with it.

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
Cross-entropy of {held_out} held-out rewrites, nats a token: {adapter:.3f}; the base without the adapter {base:.3f}.
What counts is retrieval: measure it with `bespeak evaluate`.

## Limits
English only. It was trained to use words of the query, the turns and the statements, and may still take the wrong ones.
"""

GAIN = """
## Second stage
    {command}

The adapter that the lines above tell of was trained on by minimum risk: of {n_turns} queries, each with the person's
rewrite, the adapter's own and {samples} sampled ones, those rewrites were made likelier that find the answer given in
the conversation, among all answers of the data. {n_learnt} queries whose rewrites differ in that were learnt from, and
ordinary pairs beside them. The scores above are from before.

| source | queries | licence |
| --- | --- | --- |
{sources}

Mean gain (1 / log2(1 + rank of the answer), over vectors, BM25 and the rewrite's vector alone) of all {n_turns}
queries, which the adapter has seen: the query as typed {query:.3f}, the person's rewrite {person:.3f}, the adapter's
before {before:.3f}, after {after:.3f}.
"""

CONTEXT = """\
# bge-small-en-v1.5-context-int8

Turns a query and the session before it (at most {max_tokens} tokens: the query, the last turn, earlier queries,
statements) into a vector that compares with those which bge-small-en-v1.5-int8 gives to documents. English.

| file | what |
| --- | --- |
| `model.onnx` | inputs, output and format those of bge-small-en-v1.5-int8's |
| `tokenizer.json` | that of bge-small-en-v1.5-int8 |
| `config.json` | which encoder it belongs to, pooling by the first token, the text before queries |

**Where it is from.** BAAI/bge-small-en-v1.5, MIT licence, as it is shipped beside this one; a LoRA adapter of rank 16
was trained on the matrices of layers 2 to 11, and merged. Those matrices: int8 by output channel, one bit left free.

## How it was made
    {command}

Towards the vector of a person's rewrite (1 - cosine), and of the answer where the conversation goes on, told apart from
{others} others (InfoNCE, temperature {temperature}); {n_examples} examples. How conversations are varied is told in the
project's `docs/training.md`.

| source | examples | licence |
| --- | --- | --- |
{sources}

{terms}

## Scores
Mean cosine to the vectors of {n_held_out} held-out rewrites: the query as typed {query:.3f}, with its session
{context:.3f}. What it does to retrieval: `docs/ranking.md`.

## Limits
English only. It reads 60 tokens of the last answer, and no other answer. Its vector does not say
which words it went by.
"""


SHARED_ALIKE = "As its weights derive from CC BY-SA data, the model is offered under CC BY-SA 4.0."
NOT_KNOWN = "What the model is under follows from the licences of these data, and from the MIT licence of its base."


def context_card(
    options: TrainingOptions, counts: Mapping[str, int], scores: MeanCosines, n_others: int, temperature: float
) -> str:
    """`counts`: examples by source. `n_others` and `temperature` are those of the contrastive loss."""
    files = [f"--data {path.name}" for path in options.data]
    held_out = [f"--held-out {options.held_out.name}"] if options.held_out else []
    how = [f"--passes {options.passes:g}", f"--seed {options.seed}"]
    return CONTEXT.format(
        command=" ".join(["bespeak models train-context", *files, *held_out, *how]),
        max_tokens=MAX_TOKENS,
        others=n_others,
        temperature=temperature,
        n_examples=sum(counts.values()),
        terms=SHARED_ALIKE if any("CC BY-SA" in LICENCES.get(name, "") for name in counts) else NOT_KNOWN,
        sources=licensed(counts),
        **asdict(scores),
    )


def gain_card(began: str, options: GainOptions, counts: Mapping[str, int], scores: MeanGains) -> str:
    """`began`: the card of the adapter that the stage began with."""
    files = [f"--data {path.name}" for path in options.data]
    adapter = [f"--adapter {options.adapter.name}"] if options.adapter else []
    how = [f"--turns {options.turns}", f"--seed {options.seed}"]
    return (
        began.rstrip("\n")
        + "\n"
        + GAIN.format(
            command=" ".join(["bespeak models train-gain", *files, *adapter, *how]),
            samples=SAMPLES,
            sources=licensed(counts),
            **asdict(scores),
        )
    )


def card(options: TrainingOptions, counts: Mapping[str, Mapping[str, int]], scores: CrossEntropies) -> str:
    files = [f"--data {path.name}" for path in options.data]
    held_out = [f"--held-out {options.held_out.name}"] if options.held_out else []
    how = [f"--passes {options.passes:g}", f"--seed {options.seed}"]
    return TEXT.format(
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
