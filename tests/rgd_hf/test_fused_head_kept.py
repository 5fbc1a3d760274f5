"""Which models keep their logits, because something but a linear head stands between hidden states and losses."""

import logging

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from tests.helpers.fused_heads import VOCABULARY, assert_same, batch, llama, run


class Behind(LlamaForCausalLM):
    """A model that changes its logits by `change`."""

    change = None

    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        outputs.logits = self.change(outputs.logits)
        return outputs


def behind(change):
    model = llama(type("Behind", (Behind,), {"change": lambda self, logits: change(logits)}))
    return model


def with_trained_temperature():
    model = llama(Behind)
    model.temperature = nn.Parameter(torch.ones(()))
    model.change = lambda logits: logits * model.temperature
    return model


def head_twice():
    model = llama(Behind)
    model.change = lambda logits: (logits + model.lm_head(torch.zeros(1, 1, 16))) / 2
    return model


def hooked():
    model = llama()
    model.lm_head.register_forward_hook(lambda module, args, output: output * 2)
    return model


class Mixes(nn.Linear):
    """A head that is not the same function at every position."""

    def forward(self, x):
        return super().forward(x.cumsum(dim=-2))


def mixing_head():
    model = llama()
    model.lm_head = Mixes(16, VOCABULARY, bias=False)
    return model


KEEPS = {
    "vocabulary mask": lambda: behind(lambda x: x.index_fill(-1, torch.tensor([3]), -1e9)),
    "in place": lambda: behind(lambda x: x.clone().clamp_(max=1.0)),
    "cut at the end": lambda: behind(lambda x: x[:, :-1]),
    "reversed vocabulary": lambda: behind(lambda x: x.flip(-1)),
    "log-softmax": lambda: behind(lambda x: x.log_softmax(-1)),
    "needs all positions": lambda: behind(lambda x: x.view(4, 9, VOCABULARY)),
    "cast": lambda: behind(lambda x: x.bfloat16()),
    "trained": with_trained_temperature,
    "head twice": head_twice,
    "hook": hooked,
    "head mixes tokens": mixing_head,
}


@pytest.mark.parametrize("case", list(KEEPS))
def test_anything_else_keeps_its_logits(case, caplog):
    model = KEEPS[case]()
    logging.getLogger("transformers").propagate = True
    with caplog.at_level(logging.INFO, logger="rgd_hf"):
        _, (outputs, losses) = run(model)
    assert losses is None and outputs.logits is not None
    assert "is trained through its full logits" in caplog.text
    inputs = batch()
    del inputs["labels"]
    torch.testing.assert_close(outputs.logits, model(**inputs).logits)


def test_a_model_without_an_output_embedding_keeps_its_logits(make_args):
    model = llama()
    model.get_output_embeddings = lambda: None
    assert_same(model, make_args, batch(), fused=False)


def test_a_head_of_another_class_is_asked_chunk_by_chunk(make_args):
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = llama()
    model.lm_head = Doubled(16, VOCABULARY)
    assert_same(model, make_args, batch())
