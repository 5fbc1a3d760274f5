"""Every loss against its closed form, transformers' own functions, and torch's reductions."""

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F
from transformers.loss.loss_utils import (
    ForCausalLMLoss,
    ForMaskedLMLoss,
    ForQuestionAnsweringLoss,
    ForSemanticSegmentationLoss,
)
from transformers.trainer_pt_utils import LabelSmoother

from rgd_hf import losses as un_reduced

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(4, 5, generator=GENERATOR)
TOKEN_LOGITS = torch.randn(4, 7, 5, generator=GENERATOR)
TOKENS = torch.randint(0, 5, (4, 7), generator=GENERATOR)
TOKENS[0, :3] = TOKENS[1, 5:] = TOKENS[3] = -100


def smoothed(logits: torch.Tensor, label: int, epsilon: float) -> torch.Tensor:
    log_p = logits.double().log_softmax(-1)
    return -((1 - epsilon) * log_p[label] + epsilon * log_p.mean())


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.7])
def test_single_label(epsilon: float) -> None:
    losses = un_reduced.single_label_losses(LOGITS, torch.tensor([4, -100, 0, 1]), epsilon)
    expected = [smoothed(LOGITS[row], label, epsilon) for row, label in ((0, 4), (2, 0), (3, 1))]
    torch.testing.assert_close(losses[[0, 2, 3]], torch.stack(expected).float(), rtol=1e-6, atol=1e-6)
    assert losses[1] == 0


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_class_probabilities_are_the_mixture_of_the_losses_of_their_classes(epsilon: float) -> None:
    mixed = 0.3 * F.one_hot(torch.tensor([0, 1, 2, 3]), 5) + 0.7 * F.one_hot(torch.tensor([4, 1, 0, 2]), 5)
    losses = un_reduced.single_label_losses(LOGITS, mixed, epsilon)
    first = un_reduced.single_label_losses(LOGITS, torch.tensor([0, 1, 2, 3]), epsilon)
    second = un_reduced.single_label_losses(LOGITS, torch.tensor([4, 1, 0, 2]), epsilon)
    torch.testing.assert_close(losses, 0.3 * first + 0.7 * second)


def test_multi_label_and_regression_reduce_to_torchs_means() -> None:
    targets = torch.rand(4, 5, generator=GENERATOR)
    losses = un_reduced.multi_label_losses(LOGITS, targets)
    assert losses.shape == (4,)
    torch.testing.assert_close(losses.mean(), F.binary_cross_entropy_with_logits(LOGITS, targets))
    losses = un_reduced.regression_losses(LOGITS, targets)
    assert losses.shape == (4,)
    torch.testing.assert_close(losses.mean(), F.mse_loss(LOGITS, targets))


def test_one_regression_target_is_not_broadcast_over_the_batch() -> None:
    logits, labels = torch.tensor([[1.0], [2.0], [5.0]]), torch.tensor([1, 0, 2])
    expected = torch.tensor([0.0, 4.0, 9.0])
    torch.testing.assert_close(un_reduced.regression_losses(logits, labels), expected)
    torch.testing.assert_close(un_reduced.regression_losses(logits, labels[:, None]), expected)


@pytest.mark.parametrize("epsilon", [0.0, 0.2])
def test_tokens(epsilon: float) -> None:
    losses = un_reduced.token_losses(TOKEN_LOGITS, TOKENS, epsilon)
    for row in range(4):
        for position in range(7):
            label = int(TOKENS[row, position])
            if label == -100:
                assert losses[row, position] == 0
            else:
                expected = smoothed(TOKEN_LOGITS[row, position], label, epsilon).float()
                torch.testing.assert_close(losses[row, position], expected)


def test_smoothed_tokens_have_the_mean_of_transformers_label_smoother() -> None:
    losses = un_reduced.token_losses(TOKEN_LOGITS, TOKENS, 0.1)
    expected = LabelSmoother(epsilon=0.1)({"logits": TOKEN_LOGITS}, TOKENS.clone())
    torch.testing.assert_close(losses.sum() / (TOKENS != -100).sum(), expected)
    next_tokens = un_reduced.shift_left(TOKENS)
    losses = un_reduced.token_losses(TOKEN_LOGITS, next_tokens, 0.1)
    expected = LabelSmoother(epsilon=0.1)({"logits": TOKEN_LOGITS}, TOKENS.clone(), shift_labels=True)
    torch.testing.assert_close(losses.sum() / (next_tokens != -100).sum(), expected)


def test_language_models_have_the_mean_of_transformers_losses() -> None:
    masked = un_reduced.token_losses(TOKEN_LOGITS, TOKENS)
    torch.testing.assert_close(
        masked.sum() / (TOKENS != -100).sum(), ForMaskedLMLoss(TOKEN_LOGITS, TOKENS, 5)
    )
    next_tokens = un_reduced.shift_left(TOKENS)
    causal = un_reduced.token_losses(TOKEN_LOGITS, next_tokens)
    torch.testing.assert_close(
        causal.sum() / (next_tokens != -100).sum(), ForCausalLMLoss(TOKEN_LOGITS, TOKENS, 5)
    )


def test_shift_left() -> None:
    assert un_reduced.shift_left(torch.tensor([[7, -100, 9]])).tolist() == [[-100, 9, -100]]


def test_logits_in_front_of_the_labels_have_no_loss() -> None:
    in_front = torch.randn(4, 3, 5, generator=GENERATOR)
    losses = un_reduced.token_losses(torch.cat([in_front, TOKEN_LOGITS], dim=1), TOKENS)
    torch.testing.assert_close(losses, un_reduced.token_losses(TOKEN_LOGITS, TOKENS))


def test_fewer_logits_than_labels_are_an_error() -> None:
    with pytest.raises(ValueError, match="5 positions for 7 labels"):
        un_reduced.token_losses(TOKEN_LOGITS[:, :5], TOKENS)


def test_question_answering() -> None:
    start_logits, end_logits = TOKEN_LOGITS[..., 0], TOKEN_LOGITS[..., 1]
    starts, ends = torch.tensor([0, 7, -3, 6]), torch.tensor([2, 50, 3, 6])
    losses = un_reduced.question_answering_losses(start_logits, end_logits, starts, ends)
    assert losses[1] == 0
    expected = ForQuestionAnsweringLoss(start_logits, end_logits, starts.clone(), ends.clone())
    torch.testing.assert_close(losses.sum() / 3, expected)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_the_loss_of_an_answer_is_the_mean_over_its_ends_that_count(label_smoothing: float) -> None:
    positions = [-3, 0, 4, 6, 7, 512]
    starts, ends = torch.cartesian_prod(torch.tensor(positions), torch.tensor(positions)).T
    logits = torch.randn(len(starts), 7, 2, generator=GENERATOR)
    losses = un_reduced.question_answering_losses(
        logits[..., 0], logits[..., 1], starts[:, None], ends, label_smoothing
    )
    for row, both in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        counted = [
            F.cross_entropy(logits[row, :, i], torch.tensor(max(at, 0)), label_smoothing=label_smoothing)
            for i, at in enumerate(both)
            if at < 7
        ]
        expected = torch.stack(counted).mean() if counted else torch.tensor(0.0)
        torch.testing.assert_close(losses[row], expected)


def test_semantic_segmentation() -> None:
    logits = torch.randn(2, 5, 4, 4, generator=GENERATOR)
    labels = torch.randint(0, 5, (2, 9, 7), generator=GENERATOR)
    labels[0, :4] = 255
    losses = un_reduced.semantic_segmentation_losses(logits, labels)
    assert losses.shape == (2, 63)
    assert (losses[labels.flatten(1) == 255] == 0).all()
    expected = ForSemanticSegmentationLoss(logits, labels)
    torch.testing.assert_close(losses.sum() / (labels != 255).sum(), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_computed_in_float32(dtype: torch.dtype) -> None:
    half = TOKEN_LOGITS.to(dtype) * 30
    positions = torch.tensor([0, 1, 2, 3])
    for losses, reference in (
        (un_reduced.token_losses(half, TOKENS), un_reduced.token_losses(half.float(), TOKENS)),
        (
            un_reduced.single_label_losses(half[:, 0], positions),
            un_reduced.single_label_losses(half[:, 0].float(), positions),
        ),
        (
            un_reduced.multi_label_losses(half[:, 0], torch.ones(4, 5)),
            un_reduced.multi_label_losses(half[:, 0].float(), torch.ones(4, 5)),
        ),
        (
            un_reduced.regression_losses(half[:, 0], torch.ones(4, 5)),
            un_reduced.regression_losses(half[:, 0].float(), torch.ones(4, 5)),
        ),
        (
            un_reduced.question_answering_losses(half[..., 0], half[..., 1], positions, positions),
            un_reduced.question_answering_losses(
                half[..., 0].float(), half[..., 1].float(), positions, positions
            ),
        ),
    ):
        assert losses.dtype == torch.float32
        torch.testing.assert_close(losses, reference, rtol=0, atol=0)


def test_the_logits_are_not_copied() -> None:
    """What a forward and backward pass keep is no larger than what the reduced cross-entropy keeps."""
    logits = torch.randn(2, 64, 1000, requires_grad=True)
    labels = torch.randint(0, 1000, (2, 64))

    def kept(loss: Callable[[], torch.Tensor]) -> int:
        sizes = []

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss()
        return sum(sizes)

    own = kept(lambda: ForCausalLMLoss(logits, labels, 1000))
    ours = kept(lambda: un_reduced.token_losses(logits, un_reduced.shift_left(labels)))
    assert ours <= own + 2 * labels.numel()
