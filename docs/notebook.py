# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Re-weighting in one notebook: train, compare, look at hard examples
#
# A small ResNet learns scikit-learn's handwritten digits, 8 by 8 pixels each, and one label in ten is wrong. Everything runs on
# a CPU in about a minute, without a download. Install with `pip install '.[recipes]'` in a clone of the repository.

# %%
import tempfile

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from transformers import ResNetConfig, ResNetForImageClassification, TrainingArguments

from rgd_hf import ReweightedTrainer, compare
from rgd_hf.observers import HardExamples

# %%
EPOCHS = 8
SEEDS = [0, 1, 2]
WRONG_LABELS = 0.1
folder = tempfile.mkdtemp()

# %% [markdown]
# ## Data and model
#
# Nothing here is special to re-weighting: a data set of dictionaries, a model of transformers, a metric.

# %%
images, labels = load_digits(return_X_y=True)
images = images.reshape(-1, 1, 8, 8).astype(np.float32) / 8 - 1
train_images, test_images, train_labels, test_labels = train_test_split(
    images, labels, test_size=0.4, stratify=labels, random_state=0
)

rng = np.random.default_rng(0)
wrong = rng.random(len(train_labels)) < WRONG_LABELS
given_labels = np.where(wrong, (train_labels + rng.integers(1, 10, len(train_labels))) % 10, train_labels)

train_dataset = [
    {"pixel_values": torch.tensor(image), "labels": int(label)}
    for image, label in zip(train_images, given_labels, strict=True)
]
test_dataset = [
    {"pixel_values": torch.tensor(image), "labels": int(label)}
    for image, label in zip(test_images, test_labels, strict=True)
]
print(
    f"{len(train_dataset)} training images, {wrong.sum()} of them with a wrong label; {len(test_dataset)} test images"
)


# %%
def new_model():
    """A residual network with some 20,000 parameters."""
    return ResNetForImageClassification(
        ResNetConfig(
            num_channels=1,
            embedding_size=16,
            hidden_sizes=[16, 32],
            depths=[1, 1],
            layer_type="basic",
            num_labels=10,
        )
    )


def accuracy(prediction):
    """Fraction of the test images that are classified correctly."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def arguments(seed):
    """Ordinary `TrainingArguments`."""
    return TrainingArguments(
        output_dir=folder,
        seed=seed,
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=256,
        learning_rate=5e-3,
        warmup_steps=20,
        logging_steps=20,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=torch.accelerator.is_available(),
    )


# %% [markdown]
# ## Train
#
# One class is swapped: `ReweightedTrainer` for `Trainer`. The weight of a sample is `exp(min(loss, tau) / (tau + 1))`, between
# 1 and 2.12 at the `tau` of 3 set here. The observer `HardExamples` records the weight and
# the loss of each training sample.


# %%
examples = HardExamples()
trainer = ReweightedTrainer(
    model=new_model(),
    args=arguments(seed=0),
    train_dataset=train_dataset,
    eval_dataset=test_dataset,
    compute_metrics=accuracy,
    reweighting="kl",
    tau=3.0,
)
trainer.add_observer(examples)
trainer.train()
print(f"test accuracy {trainer.evaluate()['eval_accuracy']:.3f}")

# %% [markdown]
# The logs show what the weights did. `unweighted_loss` is the plain mean loss of the training samples, `clipped_fraction` the
# fraction of losses above `tau`, and the effective sample size is 1 when all weights are equal.

# %%
logs = [entry for entry in trainer.state.log_history if "weight_mean" in entry]
steps = [entry["step"] for entry in logs]
figure, axes = plt.subplots(1, 3, figsize=(12, 3))
for axis, key in zip(axes, ("unweighted_loss", "effective_sample_size", "clipped_fraction"), strict=True):
    axis.plot(steps, [entry[key] for entry in logs])
    axis.set(title=key, xlabel="step")
plt.show()

# %% [markdown]
# ## Does it help?
#
# One run says little: two seeds often differ by more than two methods. `compare` trains each rule from the same seeds and
# prints the paired differences with their 95 % interval. Finished runs are kept, so that the same call resumes.


# %%
def make_trainer(seed, reweighting):
    """A new model and its Trainer."""
    return ReweightedTrainer(
        model=new_model(),
        args=arguments(seed),
        reweighting=reweighting,
        tau=3.0,
        train_dataset=train_dataset,
        eval_dataset=test_dataset,
        compute_metrics=accuracy,
    )


comparison = compare(
    make_trainer,
    seeds=SEEDS,
    reweightings=["none", "kl"],
    metric="eval_accuracy",
    output_dir=f"{folder}/runs",
)
print(comparison)

# %% [markdown]
# With wrong labels among the training data, do not expect a gain: re-weighting pays more attention to high losses, and wrong
# labels have high losses. Set `WRONG_LABELS = 0` and run the notebook again to see the difference.
#
# ## Hard, or mislabelled?
#
# The samples with the largest weights are worth a look. Here most of them are mislabelled.

# %%
hardest = examples.most_weighted(20)
found = sum(bool(wrong[example.index]) for example in hardest)
print(
    f"{found} of the {len(hardest)} hardest samples have a wrong label; {wrong.mean():.0%} of all samples have one"
)

figure, axes = plt.subplots(2, 10, figsize=(12, 3))
for axis, example in zip(axes.flat, hardest, strict=True):
    axis.imshow(train_images[example.index, 0], cmap="gray_r")
    axis.set_title(f"label {given_labels[example.index]}", color="red" if wrong[example.index] else "black")
    axis.set_xlabel(f"weight {example.weight:.2f}")
    axis.set(xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## Where to go from here
#
# Correct or drop mislabelled samples, then compare again. The documentation has more: how to
# [swap the Trainer](swap.md) in other kinds of script, how to [choose a setting](settings.md), and
# [what each number in the logs means](how_it_works.md).
