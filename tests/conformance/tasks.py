"""The tasks whose training is compared with the stock Trainer's: a tiny model each, its labels and its losses."""

from dataclasses import dataclass, field
from typing import Any

import torch
from comparison import Run
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    LlamaConfig,
    T5Config,
    Trainer,
    TrainingArguments,
    ViTConfig,
)

from rgd_hf import rgd_surrogate

TAU = 1.0
SIZE = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.3,
}
BERT = SIZE | {"vocab_size": 40, "max_position_embeddings": 16}
TOKENS = 9


def cross_entropy(logits, labels):
    return F.cross_entropy(logits, labels, reduction="none")


def token_losses(logits, labels):
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=-100)
    return losses[labels.flatten() != -100]


@dataclass
class Task:
    """A tiny model, how to draw one label, and its losses before reduction."""

    name: str
    auto: Any
    config: Any
    label: Any
    losses: Any
    args: dict[str, Any] = field(default_factory=dict)

    def model(self):
        torch.manual_seed(0)
        return self.auto.from_config(self.config())

    def data(self, length=32, seed=0, ragged=False):
        generator = torch.Generator().manual_seed(seed)
        return [self.example(generator, ragged) for _ in range(length)]

    def example(self, generator, ragged):
        if self.name == "image classification":
            inputs = {"pixel_values": torch.randn(3, 8, 8, generator=generator)}
        else:
            inputs = {"input_ids": torch.randint(0, 40, (TOKENS,), generator=generator)}
        labels = self.label(generator)
        if ragged and labels.dim() == 1 and len(labels) == TOKENS:
            labels[int(torch.randint(3, TOKENS, (), generator=generator)) :] = -100
        return inputs | {"labels": labels}


def one_of(classes, *shape):
    return lambda generator: torch.randint(0, classes, shape, generator=generator)


TASKS = [
    Task(
        "single label",
        AutoModelForSequenceClassification,
        lambda: BertConfig(num_labels=3, **BERT),
        one_of(3),
        cross_entropy,
    ),
    Task(
        "multi-label",
        AutoModelForSequenceClassification,
        lambda: BertConfig(num_labels=4, problem_type="multi_label_classification", **BERT),
        lambda generator: torch.randint(0, 2, (4,), generator=generator).float(),
        lambda logits, labels: F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1),
    ),
    Task(
        "regression",
        AutoModelForSequenceClassification,
        lambda: BertConfig(num_labels=1, **BERT),
        lambda generator: torch.randn((), generator=generator),
        lambda logits, labels: (logits.squeeze(1) - labels).square(),
    ),
    Task(
        "token classification",
        AutoModelForTokenClassification,
        lambda: BertConfig(num_labels=3, **BERT),
        one_of(3, TOKENS),
        token_losses,
    ),
    Task(
        "causal LM",
        AutoModelForCausalLM,
        # Not GPT-2: the stock Trainer divides its loss, a sum over shifted tokens, by the unshifted count.
        lambda: LlamaConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=16,
            initializer_range=0.3,
        ),
        one_of(40, TOKENS),
        lambda logits, labels: token_losses(logits[:, :-1], labels[:, 1:]),
    ),
    Task(
        "encoder-decoder LM",
        AutoModelForSeq2SeqLM,
        lambda: T5Config(
            vocab_size=40,
            d_model=16,
            d_kv=8,
            d_ff=16,
            num_layers=1,
            num_heads=2,
            dropout_rate=0.0,
            decoder_start_token_id=0,
        ),
        one_of(40, TOKENS),
        token_losses,
    ),
    Task(
        "image classification",
        AutoModelForImageClassification,
        lambda: ViTConfig(num_labels=3, image_size=8, patch_size=4, **SIZE),
        one_of(3),
        cross_entropy,
    ),
]


class SurrogateTrainer(Trainer):
    """The oracle: brute-force autograd through the mean surrogate of the losses."""

    loss_is_scaled_for_ga = False
    task: Task

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        loss = outputs.loss
        if model.training:
            loss = rgd_surrogate(self.task.losses(outputs.logits, inputs["labels"]), "kl", TAU).mean()
        return (loss, outputs) if return_outputs else loss


def run(cls, task, output_dir, data=None, evaluate=True, **keywords):
    args = {
        "learning_rate": 1e-2,
        "max_steps": 6,
        "logging_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "save_strategy": "no",
        "optim": "sgd",
    }
    ours = {
        name: keywords.pop(name) for name in ("reweighting", "tau", "normalize_weights") if name in keywords
    }
    collator = {"data_collator": keywords.pop("data_collator")} if "data_collator" in keywords else {}
    trainer = cls(
        task.model(),
        TrainingArguments(
            str(output_dir), use_cpu=True, report_to="none", disable_tqdm=True, **args | task.args | keywords
        ),
        train_dataset=task.data(ragged=True) if data is None else data,
        eval_dataset=task.data(16, seed=1),
        compute_metrics=lambda p: {"rows": len(p.label_ids), "logit": float(first(p.predictions).mean())},
        **collator,
        **ours,
    )
    trainer.task = task
    return Run(trainer, trainer.train(), trainer.evaluate() if evaluate else None)


def first(predictions):
    return predictions[0] if isinstance(predictions, tuple) else predictions
