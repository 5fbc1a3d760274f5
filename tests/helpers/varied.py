"""Sentences that can be told apart, for tests that follow single samples."""

import torch

from tests.helpers.tiny import classification_data


def varied_data(n: int, seed: int = 0) -> list[dict]:
    """Sentences of several lengths, none twice; the collator pads."""
    rows = classification_data(n, seed=seed)
    for number, row in enumerate(rows):
        row["input_ids"] = torch.cat(
            [torch.tensor([number % 50, number // 50]), row["input_ids"][: number % 5]]
        )
        row["attention_mask"] = torch.ones_like(row["input_ids"])
    return rows


def pad(examples: list[dict]) -> dict[str, torch.Tensor]:
    """A collator that knows nothing but its own columns."""
    batch = {}
    for name, value in (("input_ids", 0), ("attention_mask", 0), ("labels", -100)):
        columns = [torch.as_tensor(example[name]).reshape(-1) for example in examples]
        batch[name] = torch.nn.utils.rnn.pad_sequence(columns, batch_first=True, padding_value=value)
    if batch["labels"].shape[1] == 1:
        batch["labels"] = batch["labels"][:, 0]
    return batch
