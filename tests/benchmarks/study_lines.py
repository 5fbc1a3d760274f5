"""JSON lines of a comparison with known effects, as `benchmarks.study` would write them."""

import json
from pathlib import Path

import numpy as np

CLASSES = 4


def run(dataset: str, method: str, seed: int, score: float, **more) -> dict:
    """One final line."""
    name = f"{dataset}/{method}/lr1/seed{seed}/final"
    head = {"cell": name, "dataset": dataset, "method": method, "stage": "final", "seed": seed}
    return {**head, "kind": "tabular", "score": score, "learning_rate_factor": 1.0, **more}


def study(
    datasets: dict[str, str],
    methods: dict[str, float],
    seeds: int = 5,
    rows: int = 200,
    noise: float = 0.5,
    seed: int = 0,
    factors: tuple[float, ...] = (0.5, 1.0, 2.0),
) -> list[dict]:
    """Lines of a study.

    Args:
        datasets: kind by name; a kind of `"regression"` has no samples.
        methods: true difference to ERM in points, by name; `"erm"` is among them.
        seeds: final runs of each cell.
        rows: held-out samples.
        noise: standard deviation in points of what a seed adds to one method.
        seed: of the random numbers.
        factors: learning-rate factors tried; 1 is the best.
    """
    draw = np.random.default_rng(seed)
    lines = []
    for dataset, kind in datasets.items():
        counts = [400, 200, 100, 50] if "long" in dataset else [100] * CLASSES
        labels = np.arange(rows) % CLASSES
        difficulty = draw.exponential(1.0, rows)
        luck = draw.normal(0, 1.0, seeds)
        for method, effect in methods.items():
            common = {"dataset": dataset, "kind": kind.replace("regression", "text"), "method": method}
            for factor in factors:
                score = 0.8 + effect / 100 - 0.02 * abs(np.log2(factor))
                lines.append(
                    common
                    | {
                        "cell": f"{dataset}/{method}/lr{factor:g}/seed100/tuning",
                        "stage": "tuning",
                        "seed": 100,
                    }
                    | {"learning_rate_factor": factor, "score": score, "seconds": 1.0}
                )
            for number in range(seeds):
                line = common | {
                    "cell": f"{dataset}/{method}/lr1/seed{number}/final",
                    "stage": "final",
                    "learning_rate_factor": 1.0,
                    "seed": number,
                    "score": 0.8 + (luck[number] + effect + draw.normal(0, noise)) / 100,
                    "score_name": "pearson" if kind == "regression" else "accuracy",
                    "history": history(method, draw),
                    "settings": {"model_name_or_path": "some/tiny-model", "learning_rate": 1e-3},
                    "versions": {"torch": "2.15", "scipy": "1.17"},
                    "commit": "abc1234",
                    "seconds": 2.5,
                    "peak_memory_mb": 700.0,
                    "cores": 2,
                }
                if "noise" in dataset:
                    line["settings"]["label_noise"] = 0.2
                if kind != "regression":
                    losses = difficulty * np.exp(draw.normal(0, 0.3, rows))
                    correct = losses < np.quantile(losses, line["score"])
                    packed = np.packbits(correct).tobytes().hex()
                    line["samples"] = {"correct": packed, "n": rows}
                    if method == "erm":
                        line["samples"]["losses"] = [int(100 * loss) for loss in losses]
                        if number == 0:
                            line |= {"train_class_counts": counts, "labels": labels.tolist()}
                if kind == "images" and method.startswith("kl"):
                    spread = draw.multinomial(50, np.full(8, 1 / 8), size=10).tolist()
                    line["weight_histogram"] = {"edges": np.linspace(1, 1.65, 9).tolist(), "counts": spread}
                lines.append(line)
    return lines


def history(method: str, draw: np.random.Generator) -> list[dict]:
    """Log entries of a run whose losses fall; ERM logs the plain loss alone."""
    entries: list[dict] = []
    for step in range(10, 101, 10):
        loss = float(np.exp(-step / 60) + 0.05 + draw.normal(0, 0.01))
        if method.startswith("erm"):
            entries.append({"step": step, "loss": loss})
        else:
            size = float(0.9 + step / 1000 + draw.normal(0, 0.005))
            weights = {
                "effective_sample_size": size,
                "weight_mean": 1.3,
                "weight_max": 1.6,
                "clipped_fraction": 0.2,
            }
            entries.append({"step": step, "loss": 1.3 * loss, "unweighted_loss": loss, **weights})
        if step % 50 == 0:
            entries.append({"step": step, "eval_loss": loss + 0.1, "eval_score": 1 - loss})
    return entries


def write_lines(directory: Path, lines: list[dict], name: str = "runs.jsonl") -> Path:
    """Write the lines to a file in `directory`, which is returned."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return directory
