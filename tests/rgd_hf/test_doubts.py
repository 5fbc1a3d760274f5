"""A model whose loss may not be that of its head is held against its own loss, once: subclasses, forwards, hooks, adapters."""

import functools
import types
from copy import deepcopy

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from torch.nn import functional as F
from transformers import (
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
)

from rgd_hf import ReweightedTrainer, ReweightedTrainingArguments, RGDLoss, rgd_surrogate
from rgd_hf.heads import why_unverified
from tests.helpers.fused_heads import VOCABULARY, batch, llama
from tests.helpers.tiny import (
    classification_data,
    gradients_of,
    parameters_of,
    relative_error,
    stack,
    tiny_bert,
    tiny_config,
)


def texts(rows=8):
    return [{"input_ids": ids, "labels": ids} for ids in batch(rows=rows)["input_ids"]]


class FocalLlama(LlamaForCausalLM):
    @property
    def loss_function(self):
        def focal(logits, labels, vocab_size, **kwargs):
            losses = F.cross_entropy(
                logits[:, :-1].reshape(-1, vocab_size), labels[:, 1:].reshape(-1), reduction="none"
            )
            return ((1 - (-losses).exp()) ** 2 * losses).mean()

        return focal


class BidirectionalLlamaForMaskedLM(LlamaForCausalLM):
    """transformers takes its loss from the name: labels are not shifted."""


class Renamed(LlamaForCausalLM):
    pass


def other_loss_type():
    model = llama()
    model.loss_type = "ForMaskedLM"
    return model


def penalized(outputs, model):
    if outputs.loss is not None:
        outputs["loss"] = outputs.loss + 0.3 * model.lm_head.weight.square().sum()
    return outputs


def own_forward(wraps):
    model = llama()
    forward = model.forward

    def with_penalty(input_ids=None, labels=None, **kwargs):
        return penalized(forward(input_ids=input_ids, labels=labels, **kwargs), model)

    model.forward = functools.wraps(forward)(with_penalty) if wraps else with_penalty
    return model


def hooked():
    model = llama()
    model.register_forward_hook(lambda module, args, outputs: penalized(outputs, module))
    return model


def adapted(config, **settings):
    torch.manual_seed(0)
    model = get_peft_model(
        llama(), config(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], **settings)
    )
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    return model


def adalora():
    return adapted(AdaLoraConfig, init_r=4, target_r=2, total_step=100, tinit=10, tfinal=10)


ANOTHER_LOSS = {
    "derives from LlamaForCausalLM": lambda: llama(FocalLlama),
    "derives from LlamaForCausalLM ": lambda: llama(BidirectionalLlamaForMaskedLM),
    "has the loss type 'ForMaskedLM'": other_loss_type,
    "has another forward than that of transformers": lambda: own_forward(wraps=False),
    "has another forward than that of transformers ": lambda: own_forward(wraps=True),
    "has forward hooks": hooked,
    "is inside a AdaLoraModel of PEFT": adalora,
}


@pytest.mark.parametrize("reweighting", ["kl", "none"])
@pytest.mark.parametrize("why", ANOTHER_LOSS)
def test_another_loss_is_refused_on_the_first_batch(why, reweighting, make_args):
    model = ANOTHER_LOSS[why]()
    trainer = ReweightedTrainer(model, make_args(), train_dataset=texts(), reweighting=reweighting)
    start = deepcopy(model.state_dict())
    with pytest.raises(NotImplementedError, match=rf"{why.strip()}, so its loss.*per_sample_loss_fn"):
        trainer.train()
    assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("why", ANOTHER_LOSS)
def test_a_loss_function_of_the_stock_trainer_refuses_it_at_once(why):
    with pytest.raises(NotImplementedError, match=f"{why.strip()}, and RGDLoss"):
        RGDLoss(ANOTHER_LOSS[why]())


class FocalInTraining(FocalLlama):
    @property
    def loss_function(self):
        return super().loss_function if self.training else LlamaForCausalLM.loss_function.fget(self)


def hooked_in_training():
    model = llama()
    model.register_forward_hook(
        lambda module, _, outputs: penalized(outputs, module) if module.training else outputs
    )
    return model


@pytest.mark.parametrize("evaluated_before", [False, True])
@pytest.mark.parametrize("reweighting", ["kl", "none"])
@pytest.mark.parametrize("build", [lambda: llama(FocalInTraining), hooked_in_training], ids=["focal", "hook"])
def test_a_loss_of_training_alone_is_seen(build, reweighting, evaluated_before, make_args):
    """As R-Drop, or a penalty on the features: evaluation has the plain loss."""
    model, settings = build(), {"reweighting": reweighting}
    trainer = ReweightedTrainer(model, make_args(), train_dataset=texts(), eval_dataset=texts(), **settings)
    start = deepcopy(model.state_dict())
    if evaluated_before:
        trainer.evaluate()
    with pytest.raises(NotImplementedError, match=r"so its loss was compared.* in training mode\. Pass"):
        trainer.train()
    assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())


def test_a_fused_loss_without_logits_is_compared_in_evaluation_mode(make_args):
    def drop_logits(module, args, outputs):
        if outputs.loss is not None and module.training:
            outputs["logits"] = None
        return outputs

    models = [llama(), llama()]
    models[0].register_forward_hook(drop_logits)
    for model in models:
        ReweightedTrainer(model, make_args(), train_dataset=texts()).train()
    torch.testing.assert_close(parameters_of(models[0]), parameters_of(models[1]))


def test_what_is_the_models_own_loss_all_the_same_trains(make_args):
    """A subclass that changes nothing, and a hook that only looks."""
    looked, trained = [], []
    for build in (llama, lambda: llama(Renamed), llama):
        model = build()
        if trained and type(model) is LlamaForCausalLM:
            model.register_forward_hook(lambda module, args, outputs: looked.append(outputs.logits.shape[-1]))
        ReweightedTrainer(model, make_args(), train_dataset=texts()).train()
        trained.append(parameters_of(model))
    torch.testing.assert_close(trained[1], trained[0])
    torch.testing.assert_close(trained[2], trained[0])
    assert set(looked) == {VOCABULARY}  # hooks see logits, which the fused head would not make


class TwoReplicas(torch.nn.DataParallel):
    """What several devices of one process come to: each half of a batch by itself, outputs one after the other."""

    def __init__(self, module):
        torch.nn.Module.__init__(self)
        self.module, self.device_ids = module, [0, 1]

    def forward(self, **inputs):
        halves = [{k: v.chunk(2)[n] for k, v in inputs.items()} for n in range(2)]
        outputs = [self.module(**half) for half in halves]
        return {"logits": torch.cat([o.logits for o in outputs])} | (
            {} if outputs[0].loss is None else {"loss": torch.stack([o.loss for o in outputs])}
        )


def test_several_devices_of_one_process_do_not_change_whether_it_is_its_own_loss(make_args):
    for build, refused in ((lambda: llama(Renamed), False), (lambda: llama(FocalLlama), True)):
        model = build()
        source = ReweightedTrainer(model, make_args(), train_dataset=texts())._loss_source()
        if refused:
            with pytest.raises(NotImplementedError, match="model's own loss is"):
                source.run(TwoReplicas(model), batch(), 0.0)
        else:
            assert source.run(TwoReplicas(model), batch(), 0.0).losses.sum() > 0


def test_a_forward_that_is_no_function_is_compared(make_args):
    model = llama()
    plain = model.forward
    called = functools.partial(lambda self, **inputs: plain(**inputs))
    model.forward = types.MethodType(called, model)
    assert why_unverified(model) == "has another forward than that of transformers"
    ReweightedTrainer(model, make_args(remove_unused_columns=False), train_dataset=texts()).train()


def test_known_classes_and_lora_are_not_doubted():
    assert why_unverified(tiny_bert()) is None and why_unverified(llama()) is None
    assert why_unverified(adapted(LoraConfig)) is None


@pytest.mark.parametrize("fused", [True, False])
def test_a_hook_that_changes_logits_changes_the_losses(fused, make_args):
    def build():
        model = llama()

        def colder(module, args, outputs):
            outputs["logits"] = outputs.logits * 0.25
            return outputs

        model.register_forward_hook(colder)
        # Its own loss is of the logits before the hook.
        return model

    model, inputs = build(), batch()
    logits = model(input_ids=inputs["input_ids"]).logits[:, :-1]
    losses = F.cross_entropy(logits.transpose(1, 2), inputs["labels"][:, 1:], reduction="none")
    valid = inputs["labels"][:, 1:] != -100
    rgd_surrogate(losses[valid]).mean().backward()
    expected = gradients_of(model)
    args = make_args(ReweightedTrainingArguments, fused_lm_head=fused)
    found = build()

    def by_token(outputs, labels):
        losses = F.cross_entropy(outputs.logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
        return losses, labels[:, 1:] != -100

    trainer = ReweightedTrainer(found, args, train_dataset=texts(4))
    with pytest.raises(NotImplementedError, match="has forward hooks"):
        trainer.compute_loss(found.train(), dict(inputs))
    trainer = ReweightedTrainer(found, args, train_dataset=texts(4), per_sample_loss_fn=by_token)
    trainer.compute_loss(found.train(), dict(inputs)).backward()
    assert relative_error(gradients_of(found), expected) < 1e-5


def test_encoder_decoders_are_no_model_for_a_loss_function():
    """The stock Trainer withholds the labels, from which they make the inputs of their decoder."""
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    )
    with pytest.raises(NotImplementedError, match=r"inputs of its decoder.*ReweightedSeq2SeqTrainer"):
        RGDLoss(model)


def test_the_way_out_of_a_subclass_works(make_args):
    """As the message says: a method that gives the unreduced losses, here of a focal loss."""

    class Focal(ReweightedTrainer):
        def compute_per_sample_losses(self, model, inputs):
            outputs = model(input_ids=inputs["input_ids"])
            labels = inputs["labels"][:, 1:]
            losses = F.cross_entropy(outputs.logits[:, :-1].transpose(1, 2), labels, reduction="none")
            return (1 - (-losses).exp()) ** 2 * losses, outputs, labels != -100

    ours, stock = llama(FocalLlama), llama(FocalLlama)
    Focal(ours, make_args(), train_dataset=texts(), reweighting="none").train()
    Trainer(stock, make_args(), train_dataset=texts()).train()
    torch.testing.assert_close(parameters_of(ours), parameters_of(stock), rtol=1e-4, atol=1e-6)


def test_soft_labels_for_which_the_model_has_no_loss(make_args):
    """A hook that only looks leaves a training with mixup as it is; one that changes the loss is seen."""
    data = classification_data(16)
    for row in data:
        row["labels"] = torch.eye(3)[row["labels"]] * 0.7 + 0.1
    models = [tiny_bert(problem_type="single_label_classification") for _ in range(3)]
    models[1].register_forward_hook(lambda module, args, outputs: None)
    for model in models[:2]:
        ReweightedTrainer(model, make_args(), train_dataset=data).train()
    assert torch.equal(parameters_of(models[0]), parameters_of(models[1]))
    models[2].register_forward_hook(
        lambda module, args, outputs: (
            outputs | {"loss": outputs.loss * 2} if outputs.loss is not None else outputs
        )
    )
    with pytest.raises(NotImplementedError, match="has forward hooks"):
        ReweightedTrainer(models[2], make_args(), train_dataset=data).train()


def test_classification_too(make_args):
    model = tiny_bert()
    model.register_forward_hook(
        lambda module, args, outputs: (
            outputs
            if outputs.loss is None
            else outputs.__class__(loss=2 * outputs.loss, logits=outputs.logits)
        )
    )
    trainer = ReweightedTrainer(model, make_args(), train_dataset=classification_data(8))
    with pytest.raises(NotImplementedError, match="has forward hooks"):
        trainer.compute_loss(model.train(), stack(classification_data(8)))


@pytest.mark.parametrize("reweighting", ["kl", "none"])
@pytest.mark.parametrize("by_token", [False, True])
def test_class_weights_are_seen_where_the_first_batch_has_one_class(by_token, reweighting, make_args):
    data = classification_data(8)
    for row in data:
        row["labels"] = torch.zeros(7 if by_token else (), dtype=torch.long)
    torch.manual_seed(0)
    model = (BertForTokenClassification if by_token else BertForSequenceClassification)(tiny_config())

    def weighted(module, args, inputs, outputs):
        labels, logits = inputs.get("labels"), outputs["logits"]
        if labels is None:
            return outputs
        loss = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), weight=torch.tensor([1.0, 2.0, 3.0]))
        return outputs | {"loss": loss}

    model.register_forward_hook(weighted, with_kwargs=True)
    with pytest.raises(NotImplementedError, match="has forward hooks, so its loss"):
        ReweightedTrainer(model, make_args(), train_dataset=data, reweighting=reweighting).train()


class RenamedReader(BertForQuestionAnswering):
    pass


@pytest.mark.parametrize("reweighting", ["kl", "none"])
@pytest.mark.parametrize("cut", [0, 1, 3, 8], ids="{} of 8 cut".format)
def test_answers_of_which_an_end_was_cut_off_neither_refuse_nor_hide_a_loss(cut, reweighting, make_args):
    """Of those the models have another mean: whether a class is accepted must not depend on the first batch's."""
    data = [{"input_ids": row["input_ids"]} for row in classification_data(8)]
    for i, row in enumerate(data):
        ends = (i % 7, 512) if i % 2 else (512, i % 7)
        row["start_positions"], row["end_positions"] = ends if i < cut else (i % 7, 6)

    def trained(cls, hook=None):
        torch.manual_seed(0)
        model = cls(tiny_config(2))
        if hook is not None:
            model.register_forward_hook(hook)
        ReweightedTrainer(model, make_args(), train_dataset=data, reweighting=reweighting).train()
        return parameters_of(model)

    def doubled(module, args, outputs):
        return outputs if outputs.loss is None else outputs | {"loss": 2 * outputs.loss}

    assert torch.equal(trained(RenamedReader), trained(BertForQuestionAnswering))
    with pytest.raises(NotImplementedError, match="has forward hooks, so its loss"):
        trained(BertForQuestionAnswering, doubled)
