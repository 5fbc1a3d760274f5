"""Small language models with and without logits, which have to give the same loss and gradients."""

import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from rgd_hf import ReweightedTrainer
from rgd_hf.heads import FusedHead

VOCABULARY = 40
SIZE = dict(
    vocab_size=VOCABULARY,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=16,
    max_position_embeddings=32,
    initializer_range=0.5,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)


def llama(cls=LlamaForCausalLM, **settings):
    torch.manual_seed(0)
    return cls(LlamaConfig(**SIZE | settings))


def batch(rows=4, tokens=9):
    ids = torch.randint(3, VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    for row in range(rows):
        labels[row, : 2 * row] = -100
    return {"input_ids": ids, "labels": labels}


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def is_fused(trainer):
    """Whether the trainer found that its model needs no logits; None before the first batch."""
    head = trainer._loss_source()._fused_head
    return None if head._after is None and not head._keeps_logits else head._after is not None


def assert_same(model, make_args, inputs, fused=True, **settings):
    """Loss and gradients of a training batch without logits, and with them."""
    model.train()
    results = []
    for asked in (True, False):
        trainer = ReweightedTrainer(model, make_args(**settings), tau=20.0, fused_lm_head=asked)
        torch.manual_seed(3)
        loss = trainer.compute_loss(model, dict(inputs))
        assert bool(is_fused(trainer)) == (asked and fused)
        results.append((loss, gradients(model, loss)))
    (loss, found), (expected_loss, expected) = results
    torch.testing.assert_close(loss, expected_loss)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6, msg=name)


def run(model, inputs=None):
    inputs = dict(inputs or batch())
    targets = F.pad(inputs.pop("labels")[:, 1:], (0, 1), value=-100)
    head = FusedHead(model)
    return head, head.run(model.train(), inputs, targets)
