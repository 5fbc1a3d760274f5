"""What a study keeps of a training log: a few points, and every score that there is room for."""

from benchmarks.study.history import POINTS, read_history


def test_scores_are_kept_however_many_logs_lie_between_them():
    log = [{"step": step, "loss": 1 / step} for step in range(1, 101)]
    log += [{"step": step, "eval_accuracy": step / 1000, "eval_loss": 1.0} for step in (20, 43, 77, 100)]
    found = read_history(log, plain=True, score="eval_accuracy")
    scores = {point["step"]: point["eval_score"] for point in found if "eval_score" in point}
    assert scores == {20: 0.02, 43: 0.043, 77: 0.077, 100: 0.1}
    assert (found[0]["step"], found[-1]["step"]) == (1, 100) and len(found) <= 2 * POINTS
    assert all(point["unweighted_loss"] == point["loss"] for point in found if "loss" in point)
    steps = [point["step"] for point in found]
    assert steps == sorted(set(steps))


def test_a_plain_loss_that_is_logged_beside_that_of_weighted_samples_stands():
    (point,) = read_history(
        [{"step": 1, "loss": 2.0, "unweighted_loss": 1.0}], plain=True, score="eval_accuracy"
    )
    assert point["unweighted_loss"] == 1.0


def test_many_evaluations_are_thinned():
    log = [{"step": step, "eval_accuracy": 0.5} for step in range(1, 1001)]
    found = read_history(log, plain=False, score="eval_accuracy")
    assert len(found) == POINTS and found[-1]["step"] == 1000
    assert read_history(log, plain=False, score="eval_f1") == []


def test_the_best_model_evaluated_again_after_training_is_not_the_last_point():
    log = [
        {"step": 10, "eval_accuracy": 0.9, "eval_loss": 0.3},
        {"step": 20, "loss": 0.1},
        {"step": 20, "eval_accuracy": 0.8, "eval_loss": 0.5},
        {"step": 20, "train_runtime": 1.0, "train_loss": 0.2},
        {"step": 20, "eval_accuracy": 0.9, "eval_loss": 0.3},
    ]
    assert read_history(log, plain=False, score="eval_accuracy")[-1] == {
        "step": 20,
        "loss": 0.1,
        "eval_loss": 0.5,
        "eval_score": 0.8,
    }
    assert read_history(log[3:], plain=False, score="eval_accuracy") == [
        {"step": 20, "eval_loss": 0.3, "eval_score": 0.9}
    ]
