"""`imagenet.py` as a user runs it: small ViTs on digits and on files, resumed, on two processes, with every option."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, TrainerCallback, pipeline

import imagenet
from benchmarks.cost import image_throughput
from benchmarks.images import hard_versions
from helpers.images import parquet
from helpers.recipes import TINY, launch, tiny
from rgd_hf.contrib import SetupError
from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.vision import plots
from rgd_hf.scripts.vision.trainer import ImageTrainer

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT.parent / "shared" / "data" / "imagenet_samples"
AUGMENTED = (
    *("--augmentation", "deit", "--label_smoothing_factor", "0.1"),
    *("--model_args", json.dumps({"crop_pct": 1.0, "drop_path_rate": 0.2, **TINY})),
    *("--ema_decay", "0.9", "--layer_decay", "0.7", "--save_strategy", "steps", "--save_steps", "4"),
)


MIXUP = '{"mixup": 0.8}'


def weights_of(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def same(left: Path, right: Path) -> bool:
    a, b = weights_of(left), weights_of(right)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_compare_leaves_models_results_and_pictures(tmp_path, capsys):
    results = imagenet.main(tiny(tmp_path, "--compare"))
    plain, reweighted = results["runs"].values()
    assert [plain["method"], reweighted["method"]] == ["ERM", "RGD (kl, tau=3)"]
    shown = capsys.readouterr().out
    for record in (plain, reweighted):
        assert sum(record["train_class_counts"]) == 96 and len(record["train_class_counts"]) == 10
        assert record["eval_worst_class_accuracy"] <= record["eval_accuracy"] <= record["eval_top5_accuracy"]
        assert f"{record['eval_accuracy']:.4f}" in shown
    for picture in ("curves.png", "weights.png"):
        with Image.open(tmp_path / picture) as image:
            assert min(image.size) > 300
    history = json.loads((tmp_path / "kl" / "trainer_state.json").read_text())["log_history"]
    counted = sum(sum(entry.get("weight_histogram", ())) for entry in history)
    images = reweighted["train_runtime"] * reweighted["train_samples_per_second"]
    assert counted == pytest.approx(images, rel=0.01)
    classify = pipeline("image-classification", model=str(tmp_path / "kl"))
    answer = classify(Image.new("L", (8, 8)), top_k=3)
    assert {entry["label"] for entry in answer} <= set("0123456789")
    card = (tmp_path / "kl" / "README.md").read_text()
    assert "image-classification" in card and "Re-weighting" in card


def test_curves_show_every_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(plots.plt, "close", lambda figure: None)
    histories = {
        method: [
            [
                {"epoch": epoch, "unweighted_loss": seed + epoch, "eval_accuracy": 0.1 * seed}
                for epoch in (1, 2)
            ]
            for seed in range(3)
        ]
        for method in ("ERM", "RGD")
    }
    plots.plot_curves(histories, tmp_path / "curves.png")
    axes = plots.plt.gcf().axes
    assert [len(axis.lines) for axis in axes] == [6, 0, 6]
    shown = [line.get_ydata().tolist() for line in axes[0].lines]
    assert shown == 2 * [[1, 2], [2, 3], [3, 4]]
    assert len({line.get_color() for line in axes[0].lines}) == 2
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == ["ERM", "RGD"]


@pytest.mark.parametrize(
    "method, bounds",
    [
        (("--reweighting", "focal"), (0, 1.22)),
        (("--reweighting", "cvar", "--cvar_fraction", "0.25"), (0, 4)),
        (("--reweighting", "tilted"), (0, 4)),
        (("--target_ess", "0.8"), (0, 4)),
    ],
)
def test_every_method_has_its_histogram_of_weights(method, bounds, tmp_path):
    imagenet.main(tiny(tmp_path, *method, "--num_train_epochs", "1"))
    history = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    entries = [entry for entry in history if "weight_histogram" in entry]
    counts = np.sum([entry["weight_histogram"] for entry in entries], axis=0)
    assert counts.sum() == 96 and entries[0]["weight_histogram_bounds"] == pytest.approx(bounds, rel=0.1)
    middles = np.linspace(*entries[0]["weight_histogram_bounds"], 81)[1::2]
    logged = np.mean([entry["weight_mean"] for entry in entries])  # each of as many images
    assert counts @ middles / counts.sum() == pytest.approx(logged, abs=0.06)
    assert (tmp_path / "weights.png").is_file()


def test_the_reported_accuracy_is_that_of_the_saved_model(tmp_path):
    record = imagenet.main(tiny(tmp_path, "--ema_decay", "0.8"))
    classify = pipeline("image-classification", model=str(tmp_path))
    args = imagenet.ImageDataArguments(dataset_name="digits", max_train_samples=96, max_eval_samples=40)
    _, validation = imagenet.load_image_sets(args)
    images = [Image.fromarray(validation.source(i)) for i in range(len(validation))]
    right = [answer[0]["label"] == str(label) for answer, label in zip(classify(images), validation.labels)]
    assert record["eval_accuracy"] == pytest.approx(np.mean(right))
    assert record["eval_last_loss"] != record["eval_loss"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("whole")
    imagenet.main(tiny(directory, *AUGMENTED))
    return directory


def test_the_same_seed_gives_the_same_model(uninterrupted, tmp_path):
    imagenet.main(tiny(tmp_path / "again", *AUGMENTED))
    imagenet.main(tiny(tmp_path / "other", *AUGMENTED, "--seed", "43"))
    assert same(uninterrupted, tmp_path / "again")
    assert not same(uninterrupted, tmp_path / "other")


def test_balanced_class_weights_are_those_of_the_class_counts(tmp_path):
    options = ("--imbalance_factor", "5", "--reweighting", "kl", "--augmentation", '{"mixup": 0.8}')
    record = hard_versions.main(tiny(tmp_path / "balanced", *options, "--class_weights", "balanced"))
    counts = np.array(record["train_class_counts"])
    assert counts.max() > 3 * counts.min()
    listed = ",".join(str(float(weight)) for weight in counts.sum() / (len(counts) * counts))
    hard_versions.main(tiny(tmp_path / "listed", *options, "--class_weights", listed))
    hard_versions.main(tiny(tmp_path / "none", *options))
    assert same(tmp_path / "balanced", tmp_path / "listed")
    assert not same(tmp_path / "balanced", tmp_path / "none")


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    "step", [5, 6, 11]
)  # after a checkpoint in the first epoch, at its end, in the second
def test_killed_and_resumed_is_as_never_killed(step, uninterrupted, tmp_path, monkeypatch):
    class Kill(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == step:
                raise Killed

    original = ImageTrainer.__init__

    def with_kill(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.add_callback(Kill())

    monkeypatch.setattr(ImageTrainer, "__init__", with_kill)
    with pytest.raises(Killed):
        imagenet.main(tiny(tmp_path, *AUGMENTED))
    monkeypatch.undo()
    assert list(tmp_path.glob("checkpoint-*")) and not (tmp_path / "model.safetensors").exists()
    record = imagenet.main(tiny(tmp_path, *AUGMENTED, "--dataloader_num_workers", "1"))
    assert same(uninterrupted, tmp_path)
    before = json.loads((uninterrupted / "all_results.json").read_text())
    for name in ("eval_loss", "eval_last_loss", "eval_accuracy"):
        assert record[name] == before[name]
    assert "train_loss" in before and "train_loss" not in record  # which would be that of the rest


def test_averaged_weights_are_the_average(tmp_path):
    steps: list[dict[str, torch.Tensor]] = []

    class Record(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            steps.append({name: tensor.clone() for name, tensor in model.state_dict().items()})

    original = ImageTrainer.__init__

    def recorded(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.add_callback(Record())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageTrainer, "__init__", recorded)
        imagenet.main(tiny(tmp_path, "--ema_decay", "0.8", "--max_steps", "4"))
    saved = AutoModelForImageClassification.from_pretrained(tmp_path).state_dict()
    for name, expected in steps[0].items():
        for step in steps[1:]:
            expected = 0.8 * expected + 0.2 * step[name]
        assert torch.allclose(saved[name], expected, atol=1e-6), name
    assert not torch.equal(saved["timm_model.head.weight"], steps[-1]["timm_model.head.weight"])


def test_an_average_needs_its_part_of_the_checkpoint(tmp_path):
    options = tiny(
        tmp_path, "--ema_decay", "0.8", "--save_strategy", "steps", "--save_steps", "2", "--max_steps", "4"
    )
    imagenet.main(options)
    (tmp_path / "all_results.json").unlink()
    (tmp_path / "checkpoint-4" / "ema.safetensors").unlink()
    with pytest.raises(SetupError, match=r"has no ema\.safetensors"):
        imagenet.main(options)
    with pytest.raises(SetupError, match="load_best_model_at_end"):
        imagenet.main(
            [
                *tiny(tmp_path / "best", "--ema_decay", "0.8"),
                "--load_best_model_at_end",
                "--metric_for_best_model",
                "loss",
            ]
        )


def test_two_processes_train_as_one(tmp_path):
    # Without Mixup and stochastic depth, which draw once a batch.
    options = ("--tau", "2", "--ema_decay", "0.9", "--layer_decay", "0.7", "--label_smoothing_factor", "0.1")
    options += ("--augmentation", '{"preset": "deit", "mixup": 0, "cutmix": 0}', "--save_strategy", "no")
    imagenet.main(tiny(tmp_path / "one", *options))
    half = [*tiny(tmp_path / "two", *options), "--per_device_train_batch_size", "8"]
    done = launch(half, "--multi_gpu", "--num_processes", "2", script="imagenet.py")
    assert done.returncode == 0, done.stderr[-3000:]
    records = [json.loads((tmp_path / name / "all_results.json").read_text()) for name in ("one", "two")]
    assert [record["settings"]["world_size"] for record in records] == [1, 2]
    assert records[0]["eval_accuracy"] == records[1]["eval_accuracy"]
    one, two = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    assert max((one[name] - two[name]).abs().max() for name in one) < 1e-4


def test_streamed_parquet(tmp_path):
    for split, count in (("train", 48), ("validation", 20)):
        parquet(tmp_path / f"{split}.parquet", [i % 3 for i in range(count)])
    options = tiny(tmp_path / "out", "--streaming", "--class_names", "a", "b", "c", "--max_steps", "4")
    options[options.index("--dataset_name") : options.index("--model_name_or_path")] = [
        "--data_dir",
        str(tmp_path),
    ]
    record = imagenet.main(
        [*options, "--augmentation", MIXUP, "--eval_strategy", "no", "--save_strategy", "no"]
    )
    assert record["eval_accuracy"] >= 0 and record["epoch"] > 0
    with pytest.raises(UserError, match="give --max_steps"):
        imagenet.main([*options, "--max_steps", "-1", "--overwrite_output_dir"])
    with pytest.raises(UserError, match="--class_names"):
        unnamed = [name for name in options if name not in ("--class_names", "a", "b", "c")]
        imagenet.main([*unnamed, "--overwrite_output_dir"])


def test_unreadable_files_are_named_and_counted(tmp_path, capsys):
    for split in ("train", "val"):
        for number in range(16):
            folder = tmp_path / split / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 9), (number * 10, 0, 0)).save(folder / f"{number}.png")
        shutil.copy(__file__, tmp_path / split / "a" / "broken.png")
    options = tiny(tmp_path / "out", "--num_train_epochs", "1")
    options[options.index("--dataset_name") : options.index("--model_name_or_path")] = [
        "--data_dir",
        str(tmp_path),
    ]
    with pytest.raises(UserError, match=r"2 unreadable image\(s\).*broken\.png"):
        imagenet.main([*options, "--bad_images", "stop"])
    with pytest.warns(UserWarning, match="unreadable image"):
        imagenet.main(options)
    assert "2 unreadable image(s) were skipped" in capsys.readouterr().out
    assert (tmp_path / "out" / "bad_images.txt").read_text().count("broken.png") >= 2
    for split in ("train", "val"):
        (tmp_path / split / "a" / "broken.png").unlink()
    imagenet.main([*options, "--overwrite_output_dir"])
    assert "unreadable image(s)" not in capsys.readouterr().out
    assert not (tmp_path / "out" / "bad_images.txt").exists()


@pytest.mark.parametrize("name", sorted(imagenet.MOVED))
def test_options_that_there_were_say_where_they_went(name, tmp_path):
    known = {option for cls in imagenet.ARGUMENTS for option in cls.__dataclass_fields__}
    assert name not in known
    with pytest.raises(UserError, match=f"{name}.* is no option of this recipe: ") as found:
        imagenet.main(tiny(tmp_path, f"--{name}", "1"))
    told = str(found.value)
    for option in set(re.findall(r"--(\w+)", told)) - {"help", name}:
        script = hard_versions if "hard_versions.py" in told else None
        script = image_throughput if "image_throughput.py" in told else script
        arguments = (script or imagenet).ARGUMENTS
        assert any(option in cls.__dataclass_fields__ for cls in arguments), option
    if "hard_versions.py" in told:
        assert name in hard_versions.HardVersionArguments.__dataclass_fields__
    for script in re.findall(r"benchmarks/\S+\.py", told):
        assert (ROOT / script).is_file()


@pytest.mark.parametrize(
    "name", ["deit_small_imagenet", "vit_base_mae_finetune", "cifar10_vit", "digits_vit"]
)
def test_configurations_hold_known_settings(name, tmp_path):
    (tmp_path / "file").touch()
    options = ["--bf16", "false", "--use_cpu", "--output_dir", str(tmp_path / "file")]
    with pytest.raises(UserError, match="is a file"):  # what is looked at next, once all settings are read
        imagenet.main([str(ROOT / "recipes" / "configs" / f"{name}.yaml"), *options])


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="../shared/data/imagenet_samples is absent")
@pytest.mark.slow
def test_two_steps_of_the_deit_configuration_on_real_images(tmp_path):
    sources = ("--data_dir", str(SAMPLES), str(SAMPLES))
    record = imagenet.main(
        [
            *(
                str(ROOT / "recipes/configs/deit_small_imagenet.yaml"),
                *sources,
                "--max_steps",
                "2",
                "--use_cpu",
            ),
            *(
                "--per_device_train_batch_size",
                "8",
                "--max_eval_samples",
                "1000",
                "--dataloader_num_workers",
                "1",
            ),
            *(
                "--eval_strategy",
                "no",
                "--save_strategy",
                "no",
                "--disable_tqdm",
                "true",
                "--output_dir",
                str(tmp_path),
            ),
        ]
    )
    assert record["eval_last_loss"] == pytest.approx(np.log(1000), rel=0.05)
    classify = pipeline("image-classification", model=str(tmp_path))
    assert len(classify.model.config.id2label) == 1000
    assert classify.model.config.id2label[0] == "tench, Tinca tinca"
    assert len(classify(str(next((SAMPLES / "n01440764").iterdir())))) == 5
