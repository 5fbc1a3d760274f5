"""Tiny encoder-decoders without dropout, their pairs of sequences, and what pads them."""

import torch
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

VOCABULARY = 30


def t5():
    torch.manual_seed(0)
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY,
            d_model=16,
            d_kv=8,
            d_ff=16,
            num_layers=1,
            num_heads=2,
            dropout_rate=0.0,
            decoder_start_token_id=0,
        )
    )


def bart():
    torch.manual_seed(0)
    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=VOCABULARY,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            max_position_embeddings=32,
            dropout=0.0,
            init_std=0.3,
        )
    )


def pairs(n=12, seed=0, ragged=True):
    generator = torch.Generator().manual_seed(seed)

    def row(least):
        length = int(torch.randint(least, 8, (), generator=generator)) if ragged else 6
        return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()

    return [{"input_ids": row(3), "attention_mask": None, "labels": row(2)} for _ in range(n)]


def collate(examples):
    """Pads inputs with 0 and labels with -100, as `DataCollatorForSeq2Seq` does with a tokenizer."""

    def padded(name, value):
        rows = [torch.tensor(example[name]) for example in examples]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

    ids = padded("input_ids", 0)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": padded("labels", -100)}
