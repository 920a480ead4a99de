"""Compares encoders on judged collections: nDCG@10 of dense retrieval, size, and CPU time.

    python scripts/compare_encoders.py MODEL… --data DIR… [--prefix TEXT]

MODEL is a name or a folder, as for `--encoder`. Prints a Markdown table. Times are CPU milliseconds of one thread, the
median over single texts, so other work on the machine hardly affects them. nDCG@10 is given for the query as typed and,
if the collection has them, for people's rewrites; `--prefix` adds rows with that text before each query.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from bespeak.evaluation.measures import judge
from bespeak.evaluation.topics import Collection, read_collection
from bespeak.models.catalogue import model_folder
from bespeak.models.encoder import OnnxEncoder
from bespeak.records import Matrix

TIMED = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", nargs="+", type=Path, required=True)
    parser.add_argument("--prefix", help="also measure with this text before each query")
    options = parser.parse_args()
    collections = [read_collection(folder) for folder in options.data]
    heads = [c.name + suffix for c in collections for suffix in ([""] + [", person"] * has_rewrites(c))]
    print(f"| model | MB | query ms | document ms | {' | '.join(heads)} |\n|{' --- |' * (4 + len(heads))}", flush=True)
    for name in options.models:
        encoder = OnnxEncoder(model_folder(name), threads=1)
        vectors = [encoder.encode([" ".join(d.source.values()) for d in c.documents]) for c in collections]
        cost = " | ".join(costs(encoder, collections[0], model_folder(name)))
        for prefix in ("", options.prefix) if options.prefix else ("",):
            encoder.config = replace(encoder.config, query_prefix=prefix)
            scores = [s for c, v in zip(collections, vectors, strict=True) for s in ndcg(encoder, c, v)]
            row = " | ".join(f"{score:.3f}" for score in scores)
            print(f"| {encoder.name}{' + prefix' if prefix else ''} | {cost} | {row} |", flush=True)


def has_rewrites(collection: Collection) -> bool:
    return all(topic.human_rewrite for topic in collection.topics)


def costs(encoder: OnnxEncoder, collection: Collection, folder: Path) -> list[str]:
    """Size of the model in MB; CPU milliseconds for a query, and for a document cut to about 200 tokens."""
    documents = [" ".join(" ".join(d.source.values()).split()[:150]) for d in collection.documents[:TIMED]]
    queries = [topic.text for topic in collection.topics[:TIMED]]
    size = sum(path.stat().st_size for path in folder.glob("model.onnx*")) / 1e6
    return [f"{size:.0f}", f"{median_ms(encoder, queries):.1f}", f"{median_ms(encoder, documents):.0f}"]


def median_ms(encoder: OnnxEncoder, texts: Sequence[str]) -> float:
    times = []
    for text in texts:
        start = time.process_time()
        encoder.encode([text])
        times.append(time.process_time() - start)
    return statistics.median(times) * 1000


def ndcg(encoder: OnnxEncoder, collection: Collection, vectors: Matrix) -> list[float]:
    """Mean nDCG@10 of the queries as typed, then of people's rewrites if there are any."""
    queries = [[t.text for t in collection.topics]]
    if has_rewrites(collection):
        queries.append([t.human_rewrite or "" for t in collection.topics])
    found = []
    for texts in queries:
        nearest = np.argsort(-(encoder.encode(texts, kind="query") @ vectors.T), axis=1, kind="stable")[:, :100]
        run = {
            topic.query_id: [collection.documents[i].doc_id for i in row]
            for topic, row in zip(collection.topics, nearest, strict=True)
        }
        values = judge(collection.judged, run)["nDCG@10"]
        found.append(sum(values.values()) / len(values))
    return found


if __name__ == "__main__":
    main()
