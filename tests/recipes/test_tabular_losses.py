"""The tabular recipe's losses, batches and trainer against closed forms, brute force and autograd."""

import copy

import pytest
import torch
from torch.nn import functional as F

from rgd_hf import ReweightedTrainingArguments, rgd_surrogate
from rgd_hf.scripts.tabular.batches import BatchLoader, TensorTable
from rgd_hf.scripts.tabular.configuration import NETWORKS, TabularConfig
from rgd_hf.scripts.tabular.losses import loss_of, squared_errors
from rgd_hf.scripts.tabular.modeling import TabularModel
from rgd_hf.scripts.tabular.pretraining import Reconstructor, mask_features, reconstruction_losses
from rgd_hf.scripts.tabular.trainer import TabularTrainer


def tiny_model(network: str = "mlp", **options) -> TabularModel:
    torch.manual_seed(0)
    config = TabularConfig(
        network=network,
        n_num_features=3,
        cat_cardinalities=[4, 3],
        n_blocks=1,
        d_block=8,
        dropout=0.0,
        k=5,
        **{"classes": ["a", "b", "c"], **options},
    )
    return TabularModel(config)


def tiny_batch(rows: int = 16, seed: int = 1) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        "x_num": torch.randn(rows, 3, generator=draw),
        "x_cat": torch.stack([torch.randint(0, n, (rows,), generator=draw) for n in (4, 3)], dim=1),
        "labels": torch.randint(0, 3, (rows,), generator=draw),
    }


def test_an_ensemble_has_the_mean_of_its_members_losses():
    batch = tiny_batch()
    outputs = tiny_model("tabm")(batch["x_num"], batch["x_cat"])
    assert outputs.member_logits.shape == (16, 5, 3)
    one_by_one = [
        F.cross_entropy(outputs.member_logits[:, i], batch["labels"], reduction="none") for i in range(5)
    ]
    losses = loss_of(is_regression=False)(outputs, batch["labels"])
    torch.testing.assert_close(losses, torch.stack(one_by_one).mean(dim=0))
    mean = outputs.member_logits.softmax(dim=-1).mean(dim=1)
    torch.testing.assert_close(outputs.logits.softmax(dim=-1), mean)


def test_regression_of_an_ensemble_is_its_members_mean():
    batch = tiny_batch()
    model = tiny_model("tabm", classes=None, problem_type="regression")
    outputs = model(batch["x_num"], batch["x_cat"])
    torch.testing.assert_close(outputs.logits, outputs.member_logits.mean(dim=1))
    target = torch.randn(16)
    losses = loss_of(is_regression=True)(outputs, target)
    torch.testing.assert_close(losses, (outputs.member_logits[..., 0] - target[:, None]).square().mean(1))
    torch.testing.assert_close(squared_errors(outputs.logits, target), (outputs.logits[:, 0] - target) ** 2)


@pytest.mark.parametrize("network", ["mlp", "tabm"])
@pytest.mark.parametrize("reweighting", ["none", "kl", "chi2", "reverse_kl"])
def test_a_step_is_a_step_of_sgd_on_the_surrogate(network, reweighting, tmp_path):
    model, batch = tiny_model(network), tiny_batch()
    oracle = copy.deepcopy(model).train()
    args = ReweightedTrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=16,
        max_steps=1,
        optim="sgd",
        learning_rate=0.5,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        reweighting=reweighting,
        tau=2.0,
    )
    loss = loss_of(is_regression=False)
    trainer = TabularTrainer(
        model=model,
        args=args,
        train_dataset=TensorTable(batch),
        per_sample_loss_fn=loss,
    )
    trainer.train()
    losses = loss(oracle(batch["x_num"], batch["x_cat"]), batch["labels"])
    objective = losses if reweighting == "none" else rgd_surrogate(losses, reweighting, 2.0)
    objective.mean().backward()
    for (name, trained), before in zip(model.named_parameters(), oracle.parameters()):
        torch.testing.assert_close(trained, before - 0.5 * before.grad, msg=name)


def test_batches_go_through_every_row_once_in_an_order_of_their_epoch():
    table = TensorTable({"x": torch.arange(23)})
    loader = BatchLoader(table, 5, shuffle=True, seed=4)
    orders = []
    for epoch in (0, 1, 0):
        loader.set_epoch(epoch)
        batches = [batch["x"] for batch in loader]
        assert [len(batch) for batch in batches] == [5, 5, 5, 5, 3] and len(loader) == 5
        orders.append(torch.cat(batches))
        assert sorted(orders[-1].tolist()) == list(range(23))
    assert orders[0].tolist() == orders[2].tolist() != orders[1].tolist()


def test_processes_share_the_rows_evenly():
    table = TensorTable({"x": torch.arange(23)})
    loaders = [BatchLoader(table, 4, shuffle=True, rank=rank, world_size=2) for rank in range(2)]
    rows = [torch.cat([batch["x"] for batch in loader]).tolist() for loader in loaders]
    assert len(rows[0]) == len(rows[1]) == 11
    assert len(set(rows[0] + rows[1])) == 22
    assert len(loaders[0]) == len(list(loaders[0])) == 3


def test_a_last_batch_of_one_row_is_left_out_of_training_alone():
    table = TensorTable({"x": torch.arange(9)})
    assert [len(b["x"]) for b in BatchLoader(table, 4, shuffle=True)] == [4, 4]
    assert [len(b["x"]) for b in BatchLoader(table, 4)] == [4, 4, 1]


def test_reconstruction_loss_is_the_mean_over_the_masked_features():
    batch = tiny_batch()
    masked = mask_features(batch, 0.5, torch.Generator().manual_seed(0))
    assert (masked["x_num"][masked["mask_num"]] == 0).all()
    assert (masked["x_cat"][masked["mask_cat"]] == 0).all()
    kept = ~masked["mask_num"]
    assert torch.equal(masked["x_num"][kept], batch["x_num"][kept])
    output = torch.randn(16, 3 + 4 + 3)
    losses = reconstruction_losses(output, masked, [4, 3])
    for i in range(16):
        found = [(output[i, j] - batch["x_num"][i, j]) ** 2 for j in range(3) if masked["mask_num"][i, j]]
        for j, start, end in ((0, 3, 7), (1, 7, 10)):
            if masked["mask_cat"][i, j]:
                found.append(F.cross_entropy(output[i, start:end], batch["x_cat"][i, j]))
        expected = torch.stack(found).mean() if found else torch.tensor(0.0)
        torch.testing.assert_close(losses[i], expected)
    members = torch.stack([output, torch.zeros_like(output)], dim=1)
    both = (losses + reconstruction_losses(torch.zeros_like(output), masked, [4, 3])) / 2
    torch.testing.assert_close(reconstruction_losses(members, masked, [4, 3]), both)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_reconstructs_every_feature(network):
    batch, reconstructor = tiny_batch(), Reconstructor(tiny_model(network))
    output = reconstructor(batch["x_num"], batch["x_cat"])["reconstruction"]
    assert output.shape == ((16, 5, 10) if network == "tabm" else (16, 10))
