"""What the oldest releases that `pyproject.toml` allows cannot do, as reasons to skip."""

import inspect
from importlib.util import find_spec

import pytest
import torch
import transformers
from packaging.version import Version
from transformers.distributed import DistributedConfig

OLD_TORCH = Version(torch.__version__) < Version("2.7")

compiles = pytest.mark.skipif(
    not hasattr(torch.compiler, "is_exporting"),
    reason=f"torch {torch.__version__} lacks torch.compiler.is_exporting, which compiled models of transformers ask for, and "
    "builds no dataclass inside a graph",
)
shards_on_loading = pytest.mark.skipif(
    "fsdp_plan" not in inspect.signature(DistributedConfig).parameters,
    reason=f"transformers {transformers.__version__} shards no model with FSDP2 when it loads it (no fsdp_plan)",
)
LOADS_ADAPTERS = find_spec("peft.utils.transformers_weight_conversion") is not None
loads_adapters = pytest.mark.skipif(
    not LOADS_ADAPTERS,
    reason=f"transformers {transformers.__version__} loads no adapter with a PEFT before 0.19",
)
shards_without_gpu = pytest.mark.skipif(
    OLD_TORCH and not torch.cuda.is_available(),
    reason=f"FSDP2 of torch {torch.__version__} waits for streams that a CPU does not have",
)
