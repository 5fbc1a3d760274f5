"""A script of somebody's own that a study can call: logistic regression on digits, in milliseconds."""

import json
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier

from rgd_hf.scripts.cli import parse_args

DEFAULTS = {"learning_rate": 0.1}


@dataclass
class Arguments:
    """All options."""

    output_dir: str = "out"
    rows: int = 300
    learning_rate: float = 0.1
    reweighting: str = "none"
    tau: float = 1.0
    seed: int = 0
    domain: list[str] = field(default_factory=list)
    save_predictions: bool = False
    fail: str = ""


ARGUMENTS = (Arguments,)


def main(argv=None):
    """Train, and return the record."""
    (args,) = parse_args(ARGUMENTS, argv, description="", defaults=DEFAULTS)
    if args.fail == "now":
        raise FloatingPointError("the loss is NaN")
    if args.fail == "killed" and args.seed == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    if args.fail == "slow":
        (Path(args.output_dir) / "begun").touch()
        time.sleep(60)
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(args.seed).permutation(len(y))
    shift = sum(map(len, args.domain))  # another part, other rows
    train, valid, test = order[shift : shift + args.rows], order[-800:-400], order[-400:]
    rate = args.learning_rate * (args.tau if args.reweighting != "none" else 1)
    model = SGDClassifier(
        loss="log_loss", learning_rate="constant", eta0=rate, max_iter=3, tol=None, random_state=args.seed
    ).fit(x[train], y[train])
    predicted = model.predict(x[test])
    losses = -np.log(np.maximum(model.predict_proba(x[test])[np.arange(len(test)), y[test]], 1e-9))
    directory = Path(args.output_dir)
    if args.save_predictions:
        table = {"label": y[test], "prediction": predicted, "correct": predicted == y[test], "loss": losses}
        pd.DataFrame({**table, "row": test}).to_parquet(directory / "predictions.parquet")
    weight = 1.0 + 0.1 * args.tau if args.reweighting != "none" else 1.0
    log = [{"step": step, "loss": 1 / step, "weight_mean": weight} for step in (1, 2, 3)]
    (directory / "trainer_state.json").write_text(json.dumps({"log_history": log, "train_batch_size": 40}))
    return {
        "accuracy": float((predicted == y[test]).mean()),
        "validation_accuracy": float(model.score(x[valid], y[valid])),
        "validation_agreement": float((model.predict(x[valid]) == y[valid]).mean()),
        "train_class_counts": np.bincount(y[train], minlength=10).tolist(),
        "seconds": 0.1,
    }
