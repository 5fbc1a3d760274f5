"""Trained tiny models, their cards, and the code on them."""

import math
import re
from pathlib import Path
from typing import Any

from datasets import Dataset
from huggingface_hub import ModelCard
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Trainer

from rgd_hf import ReweightedTrainer, ReweightedTrainingArguments
from tests.helpers.tiny import classification_data, tiny_bert


def word_tokenizer() -> PreTrainedTokenizerFast:
    words = ["[PAD]", "[UNK]", "[MASK]", "[EOS]", "a", "sentence", "of", "your", "own"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]", "eos_token": "[EOS]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=16, **special)


def accuracy(prediction) -> dict[str, float]:
    return {
        "accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean()),
        "matthews_correlation": math.nan,
    }


def trained(make_args, model=None, **settings) -> Any:
    trainer = ReweightedTrainer(
        tiny_bert() if model is None else model,
        make_args(ReweightedTrainingArguments, **settings),
        train_dataset=Dataset.from_list(classification_data(16)),
        eval_dataset=Dataset.from_list(classification_data(8, seed=1)),
        processing_class=word_tokenizer(),
        compute_metrics=accuracy,
    )
    trainer.train()
    trainer.save_model()
    return trainer


def written(trainer: Trainer, **kwargs) -> Any:
    trainer.create_model_card(**kwargs)
    return ModelCard.load(Path(str(trainer.args.output_dir)) / "README.md")


def snippet_of(card: Any) -> str:
    return re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)[0]


def run_snippet(code: str, name: str, folder: Path) -> dict:
    assert f'"{name}' in code
    variables: dict = {}
    exec(code.replace(f'"{name}', f'"{folder}'), variables)
    return variables
