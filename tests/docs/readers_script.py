"""What a reader's script has when it comes to a code block of the documentation: models, arguments, data, by heading."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertForQuestionAnswering,
    BertForTokenClassification,
    DataCollatorForSeq2Seq,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from tests.helpers.tiny import classification_data, tiny_bert, tiny_config

Variables = dict[str, Any]
MakeArgs = Callable[..., TrainingArguments]


def word_tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<eos>", "<unk>", *(f"w{i}" for i in range(40))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def tokens(n: int = 8, length: int = 7, **labels: Callable[[torch.Tensor], Any]) -> list[dict[str, Any]]:
    """Rows of `input_ids` and of what the given functions make of them."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 40, (length,), generator=generator) for _ in range(n)]
    return [{"input_ids": row.tolist()} | {name: of(row) for name, of in labels.items()} for row in rows]


def text_classification(make_args: MakeArgs, folder: Path) -> Variables:
    data = Dataset.from_list(classification_data(8))
    return {"model": tiny_bert(), "args": make_args(), "train_dataset": data, "eval_dataset": data}


def image_classification(make_args: MakeArgs, folder: Path) -> Variables:
    config = ViTConfig(  # type: ignore[call-arg]
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4,
        num_labels=3,
    )  # fmt: skip
    data = [{"pixel_values": torch.randn(3, 8, 8), "labels": i % 3} for i in range(8)]

    def compute_metrics(prediction):
        return {"accuracy": float(np.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}

    def collate(rows):
        return {
            "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
            "labels": torch.tensor([row["labels"] for row in rows]),
        }

    return {
        "model": ViTForImageClassification(config),
        "args": make_args(),
        "train_dataset": data,
        "collate": collate,
        "compute_metrics": compute_metrics,
    }


def timm(make_args: MakeArgs, folder: Path) -> Variables:
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    config = TimmWrapperConfig(architecture="test_vit", num_labels=3, do_pooling=True)
    TimmWrapperForImageClassification(config).save_pretrained(folder / "timm")
    data = [{"pixel_values": torch.randn(3, 160, 160), "labels": i % 3} for i in range(8)]
    return {"timm_checkpoint": str(folder / "timm"), "args": make_args(), "train_dataset": data}


def token_classification(make_args: MakeArgs, folder: Path) -> Variables:
    return {
        "model": BertForTokenClassification(tiny_config()),
        "args": make_args(),
        "train_dataset": Dataset.from_list(tokens(labels=lambda row: (row % 3).tolist())),
        "tokenizer": word_tokenizer(),
    }


def question_answering(make_args: MakeArgs, folder: Path) -> Variables:
    positions = {
        "start_positions": lambda row: int(row[0]) % 3,
        "end_positions": lambda row: 3 + int(row[1]) % 3,
    }
    data = Dataset.from_list(tokens(**positions))
    return {
        "model": BertForQuestionAnswering(tiny_config(2)),
        "args": make_args(),
        "train_dataset": data,
        "eval_dataset": data,
    }


def seq2seq(make_args: MakeArgs, folder: Path) -> Variables:
    config = T5Config(
        vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0, pad_token_id=0
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    return {
        "model": model,
        "args": make_args(Seq2SeqTrainingArguments),
        "train_dataset": Dataset.from_list(tokens(labels=lambda row: row.flip(0).tolist())),
        "collate": DataCollatorForSeq2Seq(word_tokenizer(), model=model),
    }


def causal_language_model(make_args: MakeArgs, folder: Path) -> Variables:
    config = GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=32)
    return {
        "model": GPT2LMHeadModel(config),
        "args": make_args(),
        "train_dataset": Dataset.from_list(tokens()),
        "tokenizer": word_tokenizer(),
    }


def supervised_fine_tuning(make_args: MakeArgs, folder: Path) -> Variables:
    from trl import SFTConfig

    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    args = make_args(SFTConfig, max_length=32, bf16=False, gradient_checkpointing=False)
    data = Dataset.from_list([{"text": " ".join(f"w{(i + j) % 40}" for j in range(6))} for i in range(8)])
    return {
        "model": LlamaForCausalLM(config),
        "args": args,
        "train_dataset": data,
        "tokenizer": word_tokenizer(),
    }


def plain_loop(make_args: MakeArgs, folder: Path) -> Variables:
    network = torch.nn.Linear(4, 3)
    return {
        "network": network,
        "loader": [(torch.randn(8, 4), torch.randint(0, 3, (8,))) for _ in range(2)],
        "optimizer": torch.optim.SGD(network.parameters(), lr=0.1),
    }


OF_HEADING: dict[str, Callable[[MakeArgs, Path], Variables]] = {
    "Image classification": image_classification,
    "timm": timm,
    "Token classification": token_classification,
    "Question answering": question_answering,
    "Sequence to sequence": seq2seq,
    "Causal language models": causal_language_model,
    "TRL: supervised fine-tuning": supervised_fine_tuning,
    "A plain PyTorch or accelerate loop": plain_loop,
}
"""What a section of this heading takes for granted; elsewhere it is `text_classification`."""


def variables(heading: str, make_args: MakeArgs, folder: Path) -> Variables:
    """Everything that the blocks below `heading` may use."""
    return {"output_dir": str(folder / "out")} | OF_HEADING.get(heading, text_classification)(
        make_args, folder
    )
