"""Batches that ask for a loss (`return_loss`) and have no labels, as those of CLIP: `eval_loss` as the stock Trainer's."""

import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, Trainer, default_data_collator

from rgd_hf import ReweightedTrainer, ReweightingMixin
from tests.helpers.tiny import classification_data, relative_error, stack

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
ROWS = [
    {"input_ids": row["input_ids"], "pixel_values": pixels}
    for row, pixels in zip(
        classification_data(16),
        torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
        strict=True,
    )
]


def tiny_clip():
    torch.manual_seed(0)
    return CLIPModel(
        CLIPConfig(
            text_config=SMALL
            | {
                "vocab_size": 50,
                "max_position_embeddings": 32,
                "eos_token_id": 49,
                "bos_token_id": 48,
                "pad_token_id": 47,
            },
            vision_config=SMALL | {"image_size": 32, "patch_size": 16},
            projection_dim=8,
        )
    )


def collate(rows):
    return default_data_collator(rows) | {"return_loss": True}


def of_pairs(outputs):
    pairs = torch.arange(len(outputs.logits_per_text))
    sides = (outputs.logits_per_text, outputs.logits_per_image)
    return sum(F.cross_entropy(side, pairs, reduction="none") for side in sides) / 2


class ByMethod(ReweightingMixin, Trainer):
    def compute_per_sample_losses(self, model, inputs):
        outputs = model(**inputs)
        return of_pairs(outputs), outputs


def with_function(*args, **kwargs):
    return ReweightedTrainer(*args, per_sample_loss_fn=lambda outputs, labels: of_pairs(outputs), **kwargs)


def arguments(make_args, **settings):
    args = make_args(
        per_device_eval_batch_size=8, learning_rate=1e-3, train_sampling_strategy="sequential", **settings
    )
    return {"args": args, "train_dataset": ROWS, "eval_dataset": ROWS, "data_collator": collate}


@pytest.mark.parametrize(
    "metrics", [None, lambda found: {"rows": len(found.predictions[0])}], ids=["loss", "metrics"]
)
@pytest.mark.parametrize("make", [ByMethod, with_function], ids=["method", "function"])
def test_training_and_evaluation_are_those_of_the_stock_trainer(make, metrics, make_args):
    found = []
    for trainer_class, settings in ((make, {"reweighting": "none"}), (Trainer, {})):
        model = tiny_clip()
        start = torch.cat([p.detach().flatten() for p in model.parameters()])
        trainer = trainer_class(model, **arguments(make_args), compute_metrics=metrics, **settings)
        trainer.train()
        moved = torch.cat([p.detach().flatten() for p in model.parameters()]) - start
        scores = trainer.evaluate()
        found.append((moved, {name: scores.get(name, 0.0) for name in ("eval_loss", "eval_rows")}))
    assert relative_error(found[0][0], found[1][0]) < 1e-4
    assert found[1][1]["eval_loss"] > 0
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)


def test_labels_that_a_data_set_has_still_reach_the_function(make_args):
    """Where the forward has `return_loss`, too."""

    def function(outputs, labels):
        return F.cross_entropy(outputs.logits_per_image, labels, reduction="none")

    rows = [row | {"labels": torch.tensor(i % 4)} for i, row in enumerate(ROWS)]
    args = arguments(make_args) | {"train_dataset": rows, "eval_dataset": rows}
    model = tiny_clip()
    trainer = ReweightedTrainer(model, **args, per_sample_loss_fn=function)
    trainer.train()
    found = trainer.evaluate()["eval_loss"]
    with torch.no_grad():
        batches = [stack(rows[:8]), stack(rows[8:])]
        losses = [
            function(model(input_ids=b["input_ids"], pixel_values=b["pixel_values"]), b["labels"])
            for b in batches
        ]
    assert found == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)
