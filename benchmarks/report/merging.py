"""The parts of one run as one: means of what is measured, all samples."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rgd_hf.comparison.directions import is_lower_better

MEASURED = ("score", "validation_score")
WHERE = ("device", "processor", "commit")


def of_parts(parts: Sequence[Mapping[str, Any]], name: str) -> Any:
    """What all runs say of `name`; where they differ, what those of each part say."""
    if len({part.get(name) for part in parts}) < 2:
        return parts[0].get(name) if parts else None
    found: dict[str, set[str]] = {}
    for part in parts:
        found.setdefault(part.get("part", ""), set()).add(str(part.get(name)))
    return "; ".join(f"{' and '.join(sorted(each))} for {part}" for part, each in sorted(found.items()))


def merged(parts: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The run that these parts are; None while parts are missing.

    Scores, metrics and curves are means over the parts, `seconds` their sum; held-out samples stand one part after the
    other, and every metric's worst value is there as `worst_<metric>`. Parts with settings of their own have them in
    `candidates`, and `candidate` lists them; so do `device`, `processor` and `commit` where parts differ in them, and
    `devices`, `processors` and `commits` have each once.
    """
    first = parts[0] if parts else None
    if first is None or len(parts) < first.get("parts", 1):
        return None
    if len(parts) == 1 and "part" not in first:
        return first
    parts = sorted(parts, key=lambda part: part["part"])
    run = {**parts[0], "seconds": sum(part.get("seconds", 0.0) for part in parts)}
    known = [name for name in WHERE if any(name in part for part in parts)]
    run |= {name: of_parts(parts, name) for name in known}
    run |= {f"{name}s": sorted({str(part[name]) for part in parts if part.get(name)}) for name in known}
    run |= {name: _mean(parts, name) for name in MEASURED if name in first}
    metrics = [part["metrics"] for part in parts]
    common = set.intersection(*map(set, metrics))
    run["metrics"] = {name: float(np.mean([each[name] for each in metrics])) for name in sorted(common)}
    for name in sorted(common):
        worst = max if is_lower_better(name) else min
        run["metrics"][f"worst_{name}"] = worst(each[name] for each in metrics)
    run["metrics"]["worst_part"] = min(float(part["score"]) for part in parts)
    run["by_part"] = {part["part"]: part["score"] for part in parts}
    chosen = {part["part"]: part.get("candidate") for part in parts}
    if len(set(chosen.values())) > 1:
        run["candidates"] = chosen
        run["candidate"] = "; ".join(f"{candidate} for {part}" for part, candidate in chosen.items())
    if all("history" in part for part in parts):
        run["history"] = _mean_history([part["history"] for part in parts])
    if all("samples" in part for part in parts):
        run["samples"] = _samples([part["samples"] for part in parts])
    for name in ("labels", "train_class_counts", "weight_histogram"):
        run.pop(name, None)
    return run


def _mean(parts: Sequence[Mapping[str, Any]], name: str) -> float:
    return float(np.mean([part[name] for part in parts]))


def _mean_history(histories: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Means at the steps that all parts logged."""
    by_step = [{entry["step"]: entry for entry in history} for history in histories]
    points = []
    for step in sorted(set.intersection(*map(set, by_step))):
        entries = [found[step] for found in by_step]
        names = set.intersection(*map(set, entries)) - {"step"}
        points.append({"step": step, **{n: float(np.mean([e[n] for e in entries])) for n in sorted(names)}})
    return points


def _samples(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All held-out rows, numbered apart where parts number their own."""
    right = [
        np.unpackbits(np.frombuffer(bytes.fromhex(part["correct"]), dtype=np.uint8), count=part["n"])
        for part in parts
    ]
    every = np.concatenate(right)
    found: dict[str, Any] = {"correct": np.packbits(every).tobytes().hex(), "n": len(every)}
    if all("losses" in part for part in parts):
        found["losses"] = [loss for part in parts for loss in part["losses"]]
    if all("rows" in part for part in parts):
        found["rows"] = [row * len(parts) + place for place, part in enumerate(parts) for row in part["rows"]]
    return found
