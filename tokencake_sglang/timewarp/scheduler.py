"""SGLang's own Scheduler inside this process, as a scheduler process of a server has it.

One scheduler per process: SGLang publishes its settings process-wide. ``forks.run_in_fork`` gives
every run a process of its own without importing SGLang again.
"""

import array
import functools
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokencake_sglang.agents.identity import AgentTag
from tokencake_sglang.timewarp.ranks import Rank

VOCABULARY = 1024


def write_slot_model(directory: Path, *, context_tokens: int, ranks: int = 1) -> Path:
    """Writes the config of a model whose only part is to own KV slots; returns ``directory``.

    It is the smallest that SGLang's pools accept, and has the same bytes per token and rank for
    every number of ``ranks``.
    """
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 16 * ranks,
        "intermediate_size": 16 * ranks,
        "num_hidden_layers": 1,
        "num_attention_heads": ranks,
        "num_key_value_heads": ranks,
        "vocab_size": VOCABULARY,
        # SGLang keeps a row of so many slot numbers for each running request.
        "max_position_embeddings": context_tokens,
        "torch_dtype": "bfloat16",
    }
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def start_scheduler(arguments: Sequence[str], *, rank: int = 0) -> Any:
    """Builds a Scheduler, the extension loaded as a server loads it.

    Args:
        arguments: those of ``python -m sglang.launch_server``.
        rank: of the tensor-parallel group; with several, all of them must be starting, each in a
            process of its own, and agree on ``--nccl-port``.
    """
    from sglang.srt.plugins import load_plugins

    load_plugins()
    from sglang.srt.server_args import PortArgs, prepare_server_args

    server_args = prepare_server_args(list(arguments))
    server_args.resolve_once()
    server_args.check_server_args()
    from sglang.srt.managers.scheduler import Scheduler, SpawnRanks, spawn_world_rank
    from sglang.srt.runtime_context import publish

    publish(
        server_args,
        role="scheduler",
        ranks=SpawnRanks(
            world_rank=spawn_world_rank(server_args, tp_rank=rank, pp_rank=0),
            dp_rank=None,
            gpu_id=rank,
        ),
    )
    with _temporary_files_removed():
        scheduler = Scheduler(server_args, PortArgs.init_new(server_args))
    _drop_load_snapshots(scheduler)
    return scheduler


def start_slot_scheduler(
    *,
    pool_tokens: int,
    host_tokens: int,
    page_size: int,
    kv_bytes_per_token: int,
    flags: Sequence[str],
    rank: Rank,
) -> Any:
    """Builds a Scheduler of the slot model, its pools of exactly these sizes in tokens.

    Args:
        host_tokens: 0 for no host tier.
        kv_bytes_per_token: of the model that is served in virtual time. The extension is told this
            in place of the slot model's, from which the link would seem thousands of times as fast.
    """
    if "--enable-tokencake" in flags:
        from tokencake_sglang.engine.cache import TokencakeCache

        TokencakeCache.kv_bytes_per_token = kv_bytes_per_token  # type: ignore[assignment]
    host_flags = (
        "--enable-hierarchical-cache",
        *("--hicache-ratio", str(host_tokens / pool_tokens)),
        *("--hicache-io-backend", "direct", "--hicache-mem-layout", "layer_first"),
    )
    with tempfile.TemporaryDirectory(prefix="timewarp-") as directory:
        # No request can be longer than the pool.
        model = write_slot_model(
            Path(directory), context_tokens=pool_tokens + page_size, ranks=rank.count
        )
        return start_scheduler(
            [
                *("--model-path", str(model), "--load-format", "dummy"),
                *("--skip-tokenizer-init", "--device", "cpu"),
                *("--attention-backend", "torch_native", "--log-level", "error"),
                *("--max-total-tokens", str(pool_tokens), "--page-size", str(page_size)),
                *(host_flags if host_tokens else ()),
                *rank.flags(),
                *flags,
            ],
            rank=rank.number,
        )


def tokenized(
    rid: str,
    prompt: Sequence[int],
    output_tokens: int,
    *,
    tag: AgentTag | None = None,
    priority: int | None = None,
    stop_token: int | None = None,
) -> Any:
    """A greedy request, as the main process sends it to the ranks.

    Args:
        output_tokens: exactly so many come, or up to the ``stop_token`` if there is one.
    """
    from sglang.srt.managers.io_struct import TokenizedGenerateReqInput
    from sglang.srt.sampling.sampling_params import SamplingParams

    from tokencake_sglang.engine.request_tag import with_tag

    params: dict[str, Any] = {
        "max_new_tokens": output_tokens,
        "temperature": 0,
        "ignore_eos": stop_token is None,
        "stop_token_ids": None if stop_token is None else [stop_token],
    }
    if tag is not None:
        params = with_tag(params, tag)
    sampling = SamplingParams(**params)
    sampling.normalize(None)
    return TokenizedGenerateReqInput(
        rid=rid,
        input_text="",
        input_ids=array.array("q", prompt),
        input_embeds=None,
        mm_inputs=None,
        token_type_ids=None,
        sampling_params=sampling,
        return_logprob=False,
        logprob_start_len=-1,
        top_logprobs_num=0,
        token_ids_logprob=None,
        stream=False,
        priority=priority,
    )


def drop_real_time_work(scheduler: Any) -> None:
    """Leaves out what a step does for metrics, GPU streams and sampling; no decision reads it."""
    from sglang.srt.environ import envs
    from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo

    scheduler.on_idle = lambda: None  # SGLang's leak check and its sleep
    scheduler._record_step_counters = lambda _batch, _result: None  # measured in real seconds
    # Keeps a batch's GPU tensors alive until its forward has read them.
    scheduler.record_batch_in_overlap = lambda _batch: None
    # The forward's own copy of what it samples by; nothing is sampled.
    SamplingBatchInfo.copy_for_forward = lambda info: info
    # Looked up in the environment at each step, which a run does not change.
    for name in _STEP_VARIABLES:
        field = getattr(envs, name)
        field.get = functools.partial(_same, field.get())


_STEP_VARIABLES = (
    "SGLANG_DISABLE_CONSECUTIVE_PREFILL_OVERLAP",
    "SGLANG_ENABLE_DP_SPEC_PREFILL_COORDINATION",
    "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY",
    "SGLANG_PROFILE_V2",
    "SGLANG_REQ_RUNNING_TIMEOUT",
    "SGLANG_REQ_WAITING_TIMEOUT",
)


def _same(value: Any) -> Any:
    return value


@contextmanager
def _temporary_files_removed() -> Iterator[None]:
    """SGLang names its sockets after temporary files and leaves those behind; nobody connects."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="tokencake-") as directory:
        tempfile.tempdir = directory
        try:
            yield
        finally:
            tempfile.tempdir = before


def _drop_load_snapshots(scheduler: Any) -> None:
    """They are for a load balancer's process, in a shared-memory file that would stay behind."""
    writer = scheduler.load_snapshot_writer
    scheduler.load_snapshot_writer = None
    if writer is not None and hasattr(writer, "path"):
        writer.close()
        Path(writer.path).unlink(missing_ok=True)
