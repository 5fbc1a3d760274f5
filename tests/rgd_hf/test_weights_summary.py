"""The line at the end of a training says what the last log said."""

import pytest
from transformers import Trainer

from rgd_hf import ReweightedTrainer
from rgd_hf.observers.summary import weights_summary
from tests.helpers.tiny import classification_data, tiny_bert


def trained(make_args, cls=ReweightedTrainer, **arguments):
    trainer = cls(tiny_bert(), make_args(**arguments), train_dataset=classification_data(16))
    trainer.train()
    return trainer


def test_the_line_has_the_numbers_of_the_last_log(make_args, capsys):
    trainer = trained(make_args, disable_tqdm=False, max_steps=3)
    log = [entry for entry in trainer.state.log_history if "weight_mean" in entry][-1]
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Weights at"))
    assert f"step {log['step']}" in line and f"mean {log['weight_mean']:.3g}" in line
    assert f"{log['effective_sample_size']:.1%}" in line and f"{log['clipped_fraction']:.1%}" in line


@pytest.mark.parametrize("quiet", [{"disable_tqdm": True}, {"disable_tqdm": False, "logging_strategy": "no"}])
def test_there_is_no_line_without_progress_or_logs(quiet, make_args, capsys):
    trained(make_args, **quiet)
    assert "Weights at" not in capsys.readouterr().out


def test_a_stock_trainers_log_has_no_line(make_args):
    assert weights_summary(trained(make_args, Trainer).state.log_history) is None
