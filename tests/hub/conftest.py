"""A server, a process that talks to it with the real clients, a tiny model and small data on it."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from tests.helpers.hub_server import HubServer
from tests.helpers.worker import Worker

TIMM = "test_vit.r160_in1k"
WORDS = [f"word{i}" for i in range(20)]


def texts(n: int, seed: int) -> list[str]:
    return [f"{WORDS[(i * 7 + seed) % 20]} {WORDS[(i * 3) % 20]} {('good', 'bad')[i % 2]}" for i in range(n)]


def parquet(frame: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.to_parquet(buffer)
    return buffer.getvalue()


def save_tokenizer(folder: Path, *more_inputs: str) -> int:
    """Write a tokenizer of words into a folder; how many words it knows."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if more_inputs:
        special = [("[CLS]", 2), ("[SEP]", 3)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
        )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=32,
        model_input_names=["input_ids", *more_inputs, "attention_mask"],
        eos_token="[SEP]",
        mask_token="[MASK]",
        **names,
    ).save_pretrained(folder)
    return len(words)


@pytest.fixture(scope="session")
def tiny_model_files(tmp_path_factory) -> Path:
    """A BERT of one layer with a tokenizer of words, and a card with a licence."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("bert_tiny")
    config = BertConfig(
        vocab_size=save_tokenizer(folder, "token_type_ids"),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# bert-tiny\n")
    return folder


@pytest.fixture(scope="session")
def generating_models(hub: HubServer, tmp_path_factory) -> None:
    """`acme/llama-tiny` and `acme/t5-tiny` on the server, of one layer each."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    for name in ("llama", "t5"):
        folder = tmp_path_factory.mktemp(name)
        size = save_tokenizer(folder)
        if name == "llama":
            sizes = {
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
            }
            config = LlamaConfig(vocab_size=size, pad_token_id=0, bos_token_id=2, eos_token_id=3, **sizes)
            LlamaForCausalLM(config).save_pretrained(folder)
        else:
            sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
            special = {"pad_token_id": 0, "eos_token_id": 3, "decoder_start_token_id": 0}
            T5ForConditionalGeneration(T5Config(vocab_size=size, **special, **sizes)).save_pretrained(folder)
        (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
        hub.add("models", f"acme/{name}-tiny", folder)


@pytest.fixture(scope="session")
def hub(tiny_model_files: Path, tmp_path_factory) -> Iterator[HubServer]:
    """The server with `google/bert-tiny`, `acme/texts` and one task of GLUE."""
    with HubServer(xet=tmp_path_factory.mktemp("xet")) as server:
        server.add("models", "google/bert-tiny", tiny_model_files)
        splits = {"train": 16, "validation": 8, "test": 8}
        own = {
            split: parquet(pd.DataFrame({"text": texts(n, seed), "label": [i % 2 for i in range(n)]}))
            for seed, (split, n) in enumerate(splits.items())
        }
        server.add("datasets", "acme/texts", {f"data/{s}-00000-of-00001.parquet": b for s, b in own.items()})
        pairs = {
            split: parquet(
                pd.DataFrame(
                    {
                        "sentence1": texts(n, seed),
                        "sentence2": texts(n, seed + 9),
                        "label": [i % 2 for i in range(n)],
                        "idx": range(n),
                    }
                )
            )
            for seed, (split, n) in enumerate(splits.items())
        }
        lines = [f"  - split: {split}\n    path: mrpc/{split}-*" for split in splits]
        card = "---\nconfigs:\n- config_name: mrpc\n  data_files:\n" + "\n".join(lines) + "\n---\n# GLUE\n"
        files = {f"mrpc/{split}-00000-of-00001.parquet": body for split, body in pairs.items()}
        server.add("datasets", "nyu-mll/glue", {"README.md": card.encode(), **files})
        server.add("datasets", "acme/photos", photos({"train": [8], "validation": [4], "test": [4]}))
        server.add("datasets", "acme/shards", photos({"train": [8, 8, 8], "validation": [4]}))
        server.add("models", f"timm/{TIMM}", timm_files())
        yield server


def photos(splits: dict[str, list[int]]) -> dict[str, bytes]:
    """Small pictures of two classes: so many in each file of each split."""
    import numpy as np
    from datasets import ClassLabel, Dataset, Features, Image
    from PIL import Image as Picture

    features = Features({"image": Image(), "label": ClassLabel(names=["dark", "light"])})
    files = {}
    for split, counts in splits.items():
        draw = np.random.default_rng(len(split))
        for number, count in enumerate(counts):
            labels = [i % 2 for i in range(count)]
            pixels = (
                draw.integers(0, 100, (32, 32, 3), np.uint8) + 150 * np.uint8(label) for label in labels
            )
            rows = Dataset.from_dict(
                {"image": [Picture.fromarray(p) for p in pixels], "label": labels}, features
            )
            buffer = io.BytesIO()
            rows.to_parquet(buffer)
            files[f"data/{split}-{number:05}-of-{len(counts):05}.parquet"] = buffer.getvalue()
    return files


def timm_files() -> dict[str, bytes]:
    """The smallest ViT that timm has, as its repository on the Hub is."""
    import timm
    from safetensors.torch import save

    model = timm.create_model(TIMM)
    config = {"architecture": TIMM.split(".")[0], "num_classes": 1000, "pretrained_cfg": model.pretrained_cfg}
    card = b"---\nlicense: apache-2.0\nlibrary_name: timm\n---\n"
    return {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": save(model.state_dict()),
        "README.md": card,
    }


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    """The cache of the clients."""
    return tmp_path_factory.mktemp("hf_home")


@pytest.fixture(scope="session")
def remote(hub: HubServer, home: Path) -> Iterator[Worker]:
    """Calls functions of `tests.hub.scenarios` in a process whose Hub is the server."""
    worker = Worker("tests.hub.scenarios", hub.environment(home), home / "log.txt")
    yield worker
    worker.close()


@pytest.fixture
def ready(remote: Worker, hub: HubServer) -> Worker:
    """`remote`, and the server with no requests and no faults so far."""
    hub.requests.clear()
    hub.faults.clear()
    return remote


@pytest.fixture
def fresh(ready: Worker) -> Worker:
    """`ready`, with an empty cache."""
    ready("clear_cache")
    return ready
