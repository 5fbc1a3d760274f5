import pytest
import torch
from transformers import (
    BertForMaskedLM,
    BertForNextSentencePrediction,
    BertForTokenClassification,
    Trainer,
)

from rgd_hf import ReweightedTrainer, RGDLoss
from rgd_hf.weightings import LinUpper
from tests.helpers.tiny import (
    classification_data,
    parameters_of,
    relative_error,
    stack,
    tiny_bert,
    tiny_config,
    tiny_gpt2,
)


def seeded(cls):
    def make():
        torch.manual_seed(0)
        return cls(tiny_config())

    return make


def token_data(n, classes):
    generator = torch.Generator().manual_seed(3)
    data = []
    for i in range(n):
        labels = torch.randint(0, classes, (7,), generator=generator)
        labels[7 - i % 5 :] = -100
        data.append({"input_ids": torch.randint(0, 50, (7,), generator=generator), "labels": labels})
    return data


def multi_label_data(n):
    return [
        example | {"labels": torch.tensor([i % 2, i % 3 == 0, 1.0])}
        for i, example in enumerate(classification_data(n))
    ]


CASES = {
    "single-label": (tiny_bert, classification_data(30)),
    "multi-label": (tiny_bert, multi_label_data(30)),
    "regression": (
        lambda: tiny_bert(num_labels=1),
        [e | {"labels": e["labels"].float()} for e in classification_data(30)],
    ),
    "tokens": (seeded(BertForTokenClassification), token_data(30, 3)),
    "masked-lm": (seeded(BertForMaskedLM), token_data(30, 50)),
    "causal-lm": (tiny_gpt2, token_data(30, 50)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size, accumulation", [(32, 1), (8, 4)])
def test_trains_like_the_reweighted_trainer_however_the_batch_is_cut(make_args, case, size, accumulation):
    make_model, data = CASES[case]
    reference = make_model()
    args = make_args(
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        train_sampling_strategy="sequential",
    )
    ReweightedTrainer(reference, args, train_dataset=data, tau=2.0).train()
    model = make_model()
    trainer = Trainer(model, args, train_dataset=data, compute_loss_func=RGDLoss(model, tau=2.0))
    trainer.train()
    start = parameters_of(make_model())
    assert relative_error(parameters_of(model) - start, parameters_of(reference) - start) < 1e-6


def test_evaluation_is_plain(make_args):
    data, model = classification_data(16), tiny_bert()
    trainer = Trainer(model, make_args(), eval_dataset=data, compute_loss_func=RGDLoss(model))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(tiny_bert()(**stack(data)).loss.item(), rel=1e-6)


def test_none_is_the_plain_mean(make_args):
    batch, model = stack(classification_data(8)), tiny_bert()
    loss = RGDLoss(model, "none")(model(input_ids=batch["input_ids"]), batch["labels"])
    assert loss.item() == pytest.approx(tiny_bert()(**batch).loss.item(), rel=1e-6)


def test_several_devices_of_one_process_count_once():
    """The Trainer hands over the number once for each device, and multiplies the loss by theirs."""
    batch, model = stack(classification_data(8)), tiny_bert()
    outputs, loss = model(input_ids=batch["input_ids"]), RGDLoss(model)
    one = loss(outputs, batch["labels"], num_items_in_batch=torch.tensor(32))
    two = loss(outputs, batch["labels"], num_items_in_batch=torch.tensor(32).unsqueeze(0).expand(2, -1))
    assert 2 * two.item() == pytest.approx(one.item())


def test_what_it_cannot_do_is_named():
    with pytest.raises(ValueError, match=r"those of an object, reweighting=LinUpper\(temperature=\.\.\.\)"):
        RGDLoss(tiny_bert(), "lin_upper", tau=3.0)
    RGDLoss(tiny_bert(), reweighting=LinUpper(temperature=3.0))
    with pytest.raises(NotImplementedError, match="BertForNextSentencePrediction"):
        RGDLoss(BertForNextSentencePrediction(tiny_config(2)))
    with pytest.raises(ValueError, match="positive, finite"):
        RGDLoss(tiny_bert(), tau=0)
