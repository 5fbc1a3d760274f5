"""Histograms of weights over training: what a study keeps of a log, and what its report draws of it."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tabular
from benchmarks.report.plots_training import sum_of_histograms
from benchmarks.study.history import PERIODS, weight_histogram
from rgd_hf.observers.histogram import BINS, BOUNDS, HISTOGRAM


def log_of(counts):
    entries = [
        {"step": n + 1, "loss": 1.0, HISTOGRAM: row, BOUNDS: [1.0, 1.6]} for n, row in enumerate(counts)
    ]
    return [{"step": 0, "eval_loss": 2.0}, *entries]


@given(st.lists(st.lists(st.integers(0, 9), min_size=4, max_size=4), min_size=1, max_size=33))
def test_periods_hold_every_item_in_order(counts):
    found = weight_histogram(log_of(counts))
    kept = np.array(found["counts"])
    assert kept.shape == (min(PERIODS, len(counts)), 4)
    # Brute force: entry after entry into the period whose turn it is.
    sizes = [len(counts) // len(kept) + (n < len(counts) % len(kept)) for n in range(len(kept))]
    expected, rows = np.zeros_like(kept), iter(counts)
    for period, size in enumerate(sizes):
        for _ in range(size):
            expected[period] += next(rows)
    assert (kept == expected).all()
    assert found["edges"] == pytest.approx([1.0, 1.15, 1.3, 1.45, 1.6])


def test_a_log_without_weights_has_no_histogram():
    assert weight_histogram([{"step": 1, "loss": 1.0}]) is None


def test_runs_are_summed_period_by_period_and_cut_to_filled_bins():
    edges = [0.0, 1.0, 2.0, 3.0, 4.0]
    runs = [
        {"weight_histogram": {"edges": edges, "counts": [[0, 1, 2, 0], [0, 3, 0, 0]]}},
        {"weight_histogram": {"edges": edges, "counts": [[0, 4, 0, 0], [0, 0, 5, 0]]}},
        {"weight_histogram": {"edges": edges, "counts": [0, 9, 9, 9]}},  # of the whole run: other periods
        {},
    ]
    found_edges, counts = sum_of_histograms(runs)
    assert found_edges.tolist() == [1.0, 2.0, 3.0]
    assert counts.tolist() == [[5, 2], [3, 5]]
    assert sum_of_histograms([{}]) is None
    assert sum_of_histograms(runs[2:])[1].tolist() == [[9, 9, 9]]


def test_the_rows_of_a_table_are_counted(tmp_path):
    options = ["--data", "wine", "--num_train_epochs", "2", "--use_cpu", "--save_models", "false"]
    options += ["--logging_strategy", "steps", "--logging_steps", "1"]
    tabular.main([*options, "--output_dir", str(tmp_path)])
    log = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    histograms = [entry[HISTOGRAM] for entry in log if "loss" in entry]
    assert all(len(histogram) == BINS for histogram in histograms)
    # Two epochs of the 113 rows that are neither for testing nor for validation; a last batch of one row is left out.
    assert np.sum(histograms) == 2 * 112
