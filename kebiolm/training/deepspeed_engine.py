"""DeepSpeed set up from one JSON file (ZeRO and precision) and the run's own numbers."""

from __future__ import annotations

import os
import socket
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kebiolm.errors import UserError
from kebiolm.training.config import OptimizationSection
from kebiolm.training.deepspeed_file import read_deepspeed_file
from kebiolm.training.host import prepare_host


def init_distributed() -> tuple[int, int]:
    """Join the process group that the DeepSpeed launcher describes, or make one of a single process.

    Returns:
        (global rank, world size).
    """
    import deepspeed
    from deepspeed.accelerator import get_accelerator
    from deepspeed.utils import logger

    logger.setLevel("WARNING")
    # torch 2.13 says on every rank that a function which DeepSpeed calls will be renamed.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    on_cpu = get_accelerator().device_name() == "cpu"
    if on_cpu:
        _skip_shared_memory_op()
    else:
        # Before the first barrier: NCCL would guess a device there.
        get_accelerator().set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if "RANK" not in os.environ:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=_free_port())
    prepare_host(os.environ)
    backend = "gloo" if on_cpu else get_accelerator().communication_backend_name()
    _keep_to_one_timeout()
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def leave_distributed() -> None:
    """Leave the process group at the end of a run, without which NCCL warns of what it still holds.

    Only for runs that ended as they should: after a failure NCCL might wait for a process that is gone.
    """
    import deepspeed.comm

    deepspeed.comm.destroy_process_group()


def load_deepspeed_settings(path: Path) -> dict[str, Any]:
    """Read a DeepSpeed JSON and check that it holds ZeRO and precision settings only.

    Raises:
        UserError: the file is missing, is not JSON, holds what DeepSpeed does not know, sets what the recipe sets, has
            no ZeRO stage 1 to 3, or asks for a precision that the device does not have.
    """
    settings = read_deepspeed_file(path)
    parsed = _parse(path, settings)
    _check_gradient_checks(path, parsed)
    _check_precision(path, parsed)
    return settings


def make_engine(
    model: nn.Module, settings: dict[str, Any], optimization: OptimizationSection, accumulation_steps: int
) -> Any:
    """Wrap a model in a DeepSpeed engine with AdamW.

    torch's AdamW is used rather than DeepSpeed's fused one: it needs no just-in-time build, and a build that was killed
    leaves a lock on which every later run would wait.

    Args:
        model: the whole model; every parameter with requires_grad is trained.
        settings: what `load_deepspeed_settings` returned.
        optimization: batch size, clipping and AdamW's numbers.
        accumulation_steps: micro batches per optimizer step and process.
    """
    import deepspeed

    optimizer = torch.optim.AdamW(
        _parameter_groups(model, optimization.weight_decay),
        lr=optimization.learning_rate,
        betas=(optimization.beta1, optimization.beta2),
        fused=optimization.fused,
    )
    merged = with_run_numbers(settings, optimization, accumulation_steps)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=merged)
    return engine


def with_run_numbers(
    settings: dict[str, Any], optimization: OptimizationSection, accumulation_steps: int
) -> dict[str, Any]:
    """What DeepSpeed is given: its settings and the numbers that the recipe decides; arguments as `make_engine`'s."""
    return settings | {
        "train_micro_batch_size_per_gpu": optimization.micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps,
        "gradient_clipping": optimization.max_grad_norm,
        "steps_per_print": 2**31 - 1,  # the trainer prints
    }


def _parse(path: Path, settings: dict[str, Any]) -> Any:
    """The settings as DeepSpeed understands them."""
    from deepspeed.runtime.config import DeepSpeedConfig
    from pydantic import ValidationError

    stand_in = {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
    try:
        return DeepSpeedConfig(settings | stand_in)
    except ValidationError as error:
        reason = "; ".join(" ".join([*map(str, problem["loc"]), problem["msg"]]) for problem in error.errors())
    except Exception as error:  # a key of the wrong structure makes it raise many types
        reason = str(error)
    raise UserError(
        path,
        got=f"what DeepSpeed does not take ({reason})",
        expected="ZeRO and precision settings of DeepSpeed",
        mend="compare with deepspeed_configs/*.json",
    )


def _check_gradient_checks(path: Path, parsed: Any) -> None:
    """The guard against gradients that are not finite counts on DeepSpeed's ZeRO optimizers to look for them."""
    if parsed.zero_optimization_stage < 1:
        raise UserError(
            path,
            got="no ZeRO stage, or stage 0",
            expected="zero_optimization.stage 1, 2 or 3 (without, a gradient that is not finite reaches the weights)",
            mend="set stage 1, which costs nothing in one process",
        )
    if not parsed.bfloat16_config.check_grad_overflow or not parsed.zero_config.compute_grad_norm:
        raise UserError(
            path,
            got="bf16.check_grad_overflow or zero_optimization.compute_grad_norm switched off",
            expected="both on: they keep gradients that are not finite from the weights",
            mend="remove these keys",
        )


def _check_precision(path: Path, parsed: Any) -> None:
    if parsed.float16_config.enabled and _device_name() == "cpu":
        raise UserError(
            path,
            got="fp16 on a CPU",
            expected="bf16 or fp32 (DeepSpeed has no fp16 on CPUs)",
            mend="set deepspeed=deepspeed_configs/zero2_fp32.json or ..._bf16.json",
        )
    if parsed.bfloat16_config.enabled and _device_name() == "cuda":
        major, minor = torch.cuda.get_device_capability()
        if major < 8:
            raise UserError(
                path,
                got=f"bf16 on a GPU of compute capability {major}.{minor}",
                expected="fp16 or fp32 (bf16 begins at 8.0)",
                mend="set deepspeed=deepspeed_configs/zero2_fp16.json",
            )


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """No weight decay on biases, LayerNorms and the entity table.

    A decayed entity row would shrink toward zero at every step in which its entity does not occur.
    """
    decayed, kept = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_entity_table = name.endswith("entity_embeddings.weight")
        (kept if parameter.ndim == 1 or is_entity_table else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def _skip_shared_memory_op() -> None:
    """On CPUs DeepSpeed would compile a shared-memory all-reduce at every first start (about a minute); gloo serves."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _keep_to_one_timeout() -> None:
    """Let every process group wait as long as DEEPSPEED_TIMEOUT says.

    DeepSpeed tells the first group only; those that it makes later, for its own collectives, would get PyTorch's
    defaults, which `new_group` looks up under these names: half an hour with gloo.
    """
    from deepspeed.constants import default_pg_timeout
    from torch.distributed import distributed_c10d

    distributed_c10d.default_pg_timeout = distributed_c10d.default_pg_nccl_timeout = default_pg_timeout


def _device_name() -> str:
    from deepspeed.accelerator import get_accelerator

    return get_accelerator().device_name()


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
