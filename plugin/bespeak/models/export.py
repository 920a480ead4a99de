"""Exports a sentence-transformers model as an encoder. Needs the extra `train`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from bespeak.errors import ModelError
from bespeak.files import replace_folder
from bespeak.models.catalogue import RECORD, ModelRecord, describe_files, write_record

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Precision: TypeAlias = Literal["int8", "fp32"]

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
LONGEST_TOKENS = 8192
LOWEST_COSINE: dict[Precision, float] = {"fp32": 0.999, "int8": 0.9}
"""An export is refused if a vector of `PROBES` has a lower cosine to the original's."""
PROBES = (
    "Which of them are open on Sundays?",
    "The bridge was closed for repairs, so the ferry runs twice an hour until the end of March.",
    "naïve café, 東京, 42 km",
    "word " * 200,
)


def export_model(source: str, folder: Path, precision: Precision = "int8") -> ModelRecord:
    """Writes `model.onnx`, `tokenizer.json`, `config.json` and the record to `folder`, which is new or holds a model.

    All modules of the model, including pooling, become part of the graph. int8 has one scale per output channel and
    leaves one bit unused, since sums overflow otherwise on processors without VNNI. Raises ModelError.
    """
    model = open_model(source)
    check_target(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as work:
            made = Path(work) / "done"
            made.mkdir()
            write_files(model, made, precision)
            cosine = check_vectors(model, made, precision)
            how = f"exported by torch.onnx as {precision}; lowest cosine to the original {cosine:.4f}"
            record = ModelRecord(folder.name, "encoder", describe_files(made), licence(model), source, how)
            write_record(made, record)
            replace_folder(made, folder)
    except OSError as error:
        raise ModelError(f"cannot write the model to {folder} ({error}): give another folder") from error
    return record


def open_model(source: str) -> SentenceTransformer:
    """The model with explicit attention, which the exporter needs. Raises ModelError."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ModelError(
            f"an export needs the extra 'train' ({error.name} is missing): run \"pip install 'bespeak[train]'\""
        ) from error
    try:
        model = SentenceTransformer(source, device="cpu", model_kwargs={"attn_implementation": "eager"})
    except Exception as error:  # the hub, torch and transformers each raise their own
        reason = str(error).strip().split("\n")[0][:300]
        raise ModelError(
            f"{source} cannot be opened as a sentence-transformers model ({reason}): give its folder or its hub name"
        ) from error
    return model.eval()


def check_target(folder: Path) -> None:
    """Raises ModelError if the folder holds anything other than an exported model."""
    if folder.exists() and not (folder / RECORD).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(f"{folder} exists and holds no exported model: give a new folder")


def write_files(model: Any, folder: Path, precision: Precision) -> None:
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError("the model's tokenizer has no fast version (tokenizer.json): choose a model that has one")
    (folder / "tokenizer.json").write_text(backend.to_str(), "utf-8")
    (folder / "config.json").write_text(json.dumps(config_of(model), indent=2) + "\n", "utf-8")
    write_graph(model, folder / "model.onnx")
    if precision == "int8":
        quantise(folder / "model.onnx")


def config_of(model: Any) -> dict[str, Any]:
    """The content of `config.json`, from the model's own configuration; the graph pools, so `pooling` is "none"."""
    prompts = {name: text for name, text in (model.prompts or {}).items() if text}
    default = prompts.get(model.default_prompt_name or "", "")
    longest = model.max_seq_length or model.tokenizer.model_max_length
    return {
        "dim": len(model.encode("one", show_progress_bar=False)),
        "max_tokens": min(int(longest), LONGEST_TOKENS),
        "pooling": "none",
        "query_prefix": prompts.get("query", default),
        "document_prefix": prompts.get("document", prompts.get("passage", default)),
    }


def write_graph(model: Any, path: Path) -> None:
    """Writes the graph to one file, with free axes for texts and tokens. Raises ModelError."""
    import torch

    names = [name for name in INPUTS if name in model.tokenizer.model_input_names]

    class Sentences(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: Any) -> Any:
            return self.model(dict(zip(names, tensors, strict=True)))["sentence_embedding"]

    ids = torch.tensor([model.tokenizer("Which of them are open on Sundays?")["input_ids"]] * 2)
    feeds = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    try:
        torch.onnx.export(
            Sentences().eval(),
            tuple(feeds[name] for name in names),
            path,
            input_names=names,
            output_names=["sentence_embedding"],
            dynamic_shapes=((free,) * len(names),),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    except Exception as error:  # the exporter raises many kinds
        reason = str(error).strip().split("\n")[0][:300]
        raise ModelError(f"torch cannot export this model to ONNX ({reason}): choose another model") from error


def quantise(path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    full = path.with_name("full.onnx")
    path.rename(full)
    quantize_dynamic(
        full,
        path,
        op_types_to_quantize=["MatMul", "Gemm", "Gather"],
        per_channel=True,
        reduce_range=True,
        weight_type=QuantType.QInt8,
    )
    full.unlink()


def check_vectors(model: Any, folder: Path, precision: Precision) -> float:
    """Lowest cosine between the vectors of the original and the export. Raises ModelError if it is too low."""
    from bespeak.models.encoder import OnnxEncoder

    config = json.loads((folder / "config.json").read_text("utf-8"))
    found = OnnxEncoder(folder).encode(PROBES)
    texts = [config["document_prefix"] + text for text in PROBES]
    expected = model.encode(texts, prompt="", normalize_embeddings=True, show_progress_bar=False)
    lowest = float((found * expected).sum(axis=1).min())
    if not lowest >= LOWEST_COSINE[precision]:
        raise ModelError(
            f"the export is not faithful: the lowest cosine to the original is {lowest:.4f}, but must be at least "
            f"{LOWEST_COSINE[precision]} for {precision}: choose fp32, or another model"
        )
    return lowest


def licence(model: Any) -> str:
    """The licence that the model's card names."""
    found = getattr(model.model_card_data, "license", None)
    return str(found) if found else "unknown"


def default_name(source: str) -> str:
    """A name for the export: the last part of the folder's path, or of its name on the hub."""
    return Path(source).resolve().name if Path(source).is_dir() else source.rstrip("/").rsplit("/", 1)[-1]
