"""What is trained, and how its batches are cut; and the brute-force answer that every cut has to give."""

from dataclasses import dataclass, field, replace
from itertools import product

STEPS = 10
GLOBAL_BATCH = 8
SAMPLES = 37  # four steps of 8 samples and one of 5: the last accumulation is partial, the last round uneven


@dataclass(frozen=True)
class Setting:
    """What decides the trajectory, and nothing else does."""

    task: str = "sequence"
    level: str = "auto"
    divergence: str = "kl"
    normalize: bool = False
    optim: str = "sgd"
    samples: int = SAMPLES
    warmup: float = 0.0
    sample_weight: bool = False
    shuffle: bool = False
    fused: bool = True

    @property
    def tau(self) -> float:
        """In the middle of the losses of the task."""
        return 5.0 if self.task == "causal" else 1.5

    def __str__(self) -> str:
        words = [self.task, self.level, self.divergence, self.optim]
        words += ["normalized"] * self.normalize + ["warmup"] * bool(self.warmup)
        words += ["sample_weight"] * self.sample_weight + ["shuffled"] * self.shuffle
        words += ["logits"] * (not self.fused)
        return "-".join(words + [str(self.samples)] * (self.samples != SAMPLES))


@dataclass(frozen=True)
class Cut:
    """How the 8 samples of a step are cut into `micro` x `accumulation` x `processes`."""

    micro: int
    accumulation: int
    processes: int
    accelerator: tuple[tuple[str, bool], ...] = ()
    average_tokens: bool = True
    iterable: bool = False
    eval_batch: int = 4

    def __str__(self) -> str:
        words = [f"{self.micro}x{self.accumulation}x{self.processes}"]
        words += [f"{name}={value}" for name, value in self.accelerator]
        words += ["iterable"] * self.iterable + ["average_tokens=False"] * (not self.average_tokens)
        return "-".join(words)


@dataclass(frozen=True)
class Case:
    setting: Setting = field(default_factory=Setting)
    cut: Cut = field(default_factory=lambda: Cut(8, 1, 1))

    def __str__(self) -> str:
        return f"{self.setting}--{self.cut}"


LEVELS = (("sequence", "auto"), ("token", "token"), ("token", "sample"))

EVERY_SETTING = [
    Setting(task, level, divergence, normalize, optim)
    for (task, level), divergence, normalize, optim in product(
        LEVELS, ("kl", "chi2", "reverse_kl", "none"), (False, True), ("sgd", "adamw_torch")
    )
]

# The paths through the code that scale differently: counted before the forward pass, or rescaled after the backward.
CORE = [
    Setting(),
    Setting(normalize=True, optim="adamw_torch"),
    Setting("token", "token", optim="adamw_torch"),
    Setting("token", "sample", normalize=True),
    Setting("own", "token"),
]

EXTRA = [
    Setting("causal", "token", "reverse_kl", optim="adamw_torch"),
    Setting("causal", "sample", normalize=True),
    Setting("causal", "token", normalize=True, sample_weight=True),
    Setting("causal", "token", fused=False),
    Setting("causal", "sample", normalize=True, fused=False),
    Setting("own", "token", "chi2", normalize=True, optim="adamw_torch"),
    Setting("own", "sample"),
    Setting(shuffle=True),
    Setting("token", "token", shuffle=True, normalize=True),
    Setting(warmup=0.4),
    Setting("token", "token", normalize=True, warmup=0.4),
    Setting(sample_weight=True),
    Setting("token", "token", sample_weight=True, normalize=True),
    Setting("token", "sample", sample_weight=True, optim="adamw_torch"),
    Setting("own", "token", sample_weight=True),
    Setting(divergence="none", sample_weight=True),
    Setting(samples=3),  # fewer than the processes need for one round
    Setting("token", "token", samples=16),  # nothing to repeat
]


def _accelerator(**config: bool) -> tuple[tuple[str, bool], ...]:
    return tuple(config.items())


ONE_PROCESS = [
    # Both optimizers in turn: two processes train every combination.
    *[Case(setting, Cut(2, 4, 1)) for setting in EVERY_SETTING[::4] + EVERY_SETTING[3::4]],
    *[
        Case(setting, cut)
        for setting in CORE
        for cut in (Cut(8, 1, 1), Cut(4, 2, 1, eval_batch=3), Cut(1, 8, 1))
    ],
    *[Case(setting, Cut(4, 2, 1, eval_batch=16)) for setting in EXTRA],
]

TWO_PROCESSES = [
    *[Case(setting, Cut(2, 2, 2)) for setting in EVERY_SETTING],
    *[
        Case(setting, cut)
        for setting in CORE
        for cut in (Cut(4, 1, 2, eval_batch=3), Cut(1, 4, 2, average_tokens=False))
    ],
    *[Case(setting, Cut(2, 2, 2, eval_batch=5)) for setting in EXTRA],
    *[
        Case(setting, cut)
        for setting in (CORE[2], CORE[3])
        for cut in (
            Cut(4, 2, 2, _accelerator(split_batches=True)),
            Cut(2, 2, 2, _accelerator(dispatch_batches=True)),
            Cut(4, 2, 2, _accelerator(split_batches=True, dispatch_batches=True)),
            Cut(2, 2, 2, iterable=True),
            Cut(4, 2, 2, _accelerator(split_batches=True), iterable=True),
        )
    ],
    *[
        # Both processes have equally many batches (of 35 samples and of 11), the last one smaller on the second.
        Case(replace(setting, samples=35), Cut(2, 2, 2, _accelerator(even_batches=False), eval_batch=6))
        for setting in (CORE[2], CORE[3])
    ],
]

FOUR_PROCESSES = [
    *[Case(setting, Cut(1, 2, 4, eval_batch=1)) for setting in CORE],
    *[Case(setting, Cut(2, 1, 4, average_tokens=False, eval_batch=3)) for setting in CORE],
    Case(CORE[2], Cut(8, 1, 4, _accelerator(split_batches=True))),
    Case(CORE[3], Cut(2, 1, 4, _accelerator(dispatch_batches=True))),
    Case(CORE[2], Cut(1, 2, 4, iterable=True)),
    Case(Setting("token", "token", sample_weight=True, normalize=True), Cut(1, 2, 4)),
    Case(Setting(samples=3), Cut(2, 1, 4)),
]

RESUMED = [
    Setting("token", "token", optim="adamw_torch", shuffle=True),
    Setting(normalize=True, optim="adamw_torch"),
]

LABELS_MADE = [
    Case(setting, cut)
    for setting in (Setting(), Setting("token", "token", normalize=True))
    for cut in (Cut(2, 2, 2), Cut(4, 1, 2))
]

FSDP_SETTINGS = [
    Setting(),
    Setting(normalize=True, optim="adamw_torch"),
    Setting("token", "token", "chi2", optim="adamw_torch"),
    Setting("token", "sample", "reverse_kl", normalize=True),
    Setting("own", "token"),
    Setting(divergence="none"),
    Setting("causal", "token", optim="adamw_torch"),
    Setting("causal", "sample", normalize=True),
    Setting("causal", "token", fused=False),
]

ZERO_SETTINGS = [
    Setting("causal", "token"),
    Setting(),
    Setting("token", "token", optim="adamw_torch"),
    Setting("token", "sample", "reverse_kl"),
]

BY_PROCESSES = {1: ONE_PROCESS, 2: TWO_PROCESSES, 4: FOUR_PROCESSES}
