"""Models whose losses the library does not know: refused with the way out, which works."""

import pytest
import torch
from torch.nn import functional as F
from transformers import BertForNextSentencePrediction, Trainer

from rgd_hf import ReweightedTrainer, rgd_surrogate
from tests.helpers.tiny import (
    classification_data,
    gradients_of,
    parameters_of,
    relative_error,
    stack,
    tiny_bert,
    tiny_config,
)


class TestUnknownHeads:
    def test_stop_with_the_way_out(self, make_args):
        model = BertForNextSentencePrediction(tiny_config(2))
        with pytest.raises(NotImplementedError, match=r"BertForNextSentencePrediction.*per_sample_loss_fn"):
            ReweightedTrainer(model, make_args())

    def test_train_as_the_stock_trainer_does_with_none(self, make_args):
        data = classification_data(16, num_labels=2)
        models = []
        for cls, kwargs in ((Trainer, {}), (ReweightedTrainer, {"reweighting": "none"})):
            torch.manual_seed(0)
            models.append(BertForNextSentencePrediction(tiny_config(2)))
            cls(models[-1], make_args(), train_dataset=data, **kwargs).train()
        assert torch.equal(parameters_of(models[0]), parameters_of(models[1]))

    @pytest.mark.parametrize("accumulation", [1, 2, 4])
    def test_per_sample_loss_fn_trains_them_exactly(self, make_args, accumulation):
        data = classification_data(30, num_labels=2)
        torch.manual_seed(0)
        model = BertForNextSentencePrediction(tiny_config(2))
        start = parameters_of(model)
        args = make_args(
            per_device_train_batch_size=32 // accumulation,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            train_sampling_strategy="sequential",
        )
        trainer = ReweightedTrainer(
            model,
            args,
            train_dataset=data,
            per_sample_loss_fn=lambda outputs, labels: F.cross_entropy(
                outputs.logits, labels, reduction="none"
            ),
        )
        trainer.train()
        torch.manual_seed(0)
        oracle, batch = BertForNextSentencePrediction(tiny_config(2)), stack(data)
        logits = oracle(input_ids=batch["input_ids"]).logits
        rgd_surrogate(F.cross_entropy(logits, batch["labels"], reduction="none")).mean().backward()
        for parameter in oracle.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert relative_error(parameters_of(model) - start, -0.5 * gradients_of(oracle)) < 1e-6

    def test_a_reduced_loss_is_refused(self, make_args):
        trainer = ReweightedTrainer(
            tiny_bert(),
            make_args(),
            train_dataset=classification_data(8),
            per_sample_loss_fn=lambda outputs, labels: F.cross_entropy(outputs.logits, labels),
        )
        with pytest.raises(ValueError, match=r"0-dimensional.*reduction='none'"):
            trainer.train()

    def test_a_forward_of_ones_own_has_no_head(self, make_args):
        from transformers import BertForSequenceClassification

        class Focal(BertForSequenceClassification):
            def forward(self, *args, **kwargs):
                return super().forward(*args, **kwargs)

        class Renamed(BertForSequenceClassification):
            pass

        with pytest.raises(NotImplementedError, match="Focal"):
            ReweightedTrainer(Focal(tiny_config()), make_args())
        ReweightedTrainer(Renamed(tiny_config()), make_args())

    def test_a_reduced_compute_loss_func_is_refused(self, make_args):
        with pytest.raises(ValueError, match="per_sample_loss_fn"):
            ReweightedTrainer(tiny_bert(), make_args(), compute_loss_func=lambda *args, **kwargs: 0.0)
