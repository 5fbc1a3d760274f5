"""A tiny Llama, a tokenizer of words, and texts for them."""

import datasets
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = [f"w{i}" for i in range(30)]


def tokenizer():
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=33,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        pad_token_id=0,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config)


def text(n=8, completions=False):
    generator = torch.Generator().manual_seed(0)

    def words(least, most):
        length = int(torch.randint(least, most, (), generator=generator))
        return " ".join(WORDS[i] for i in torch.randint(0, 30, (length,), generator=generator))

    if completions:
        return datasets.Dataset.from_list(
            [{"prompt": words(2, 5), "completion": words(2, 7)} for _ in range(n)]
        )
    return datasets.Dataset.from_list([{"text": words(3, 9)} for _ in range(n)])
