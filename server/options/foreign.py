"""Options of vLLM and SGLang that users know and Penstock does not offer, with what to do instead."""

from __future__ import annotations

NOT_YET = "is not supported yet: leave it out"
ONE_REPLICA = "is not supported yet, a server is one replica on one machine: leave it out"

# name with dashes -> what the error says after the flag
KNOWN = {
    "enable-chunked-prefill": "is not needed, prefill is always chunked: leave it out",
    "no-enable-chunked-prefill": "is not possible, prefill is always chunked: leave it out",
    "disable-chunked-prefix-cache": "is not possible, prefill is always chunked: leave it out",
    "enable-prompt-tokens-details": "is not needed, usage always shows cached tokens: leave it out",
    "enable-cache-report": "is not needed, usage always shows cached tokens: leave it out",
    "enable-metrics": "is not needed, /metrics is always there: leave it out",
    "enable-priority-scheduling": "is not needed, `fcfs` honours priorities: leave it out",
    "trust-remote-code": "is not supported, no code from a checkpoint is ever run: leave it out",
    "skip-tokenizer-init": "is not supported, the server always tokenises: leave it out",
    "tokenizer-mode": "is not supported, tokenizer.json is always used: leave it out",
    "is-embedding": "is spelled differently here: use --runner pooling",
    "uvicorn-log-level": "is not supported: use --log-level",
    "speculative-accept-threshold-single": "is not possible, outputs are those of the model alone: leave it out",
    "speculative-accept-threshold-acc": "is not possible, outputs are those of the model alone: leave it out",
    "speculative-use-rejection-sampling": "is not needed, drafts are always accepted so: leave it out",
    "speculative-adaptive-config": "is not needed, lengths follow the measured cost of a step: leave it out",
    "speculative-ngram-capacity": "is not supported: use --speculative-config with shared_pool, a number of tokens",
    "speculative-ngram-min-bfs-breadth": "is not supported, drafts are chains: leave it out",
    "speculative-ngram-max-bfs-breadth": "is not supported, drafts are chains: leave it out",
    "speculative-ngram-max-match-window-size": "is spelled differently here: use --ngram-prompt-lookup-max",
    "speculative-ngram-match-type": "is not supported, drafts are chains: leave it out",
    "distributed-executor-backend": ONE_REPLICA,
    "use-ray": ONE_REPLICA,
}

ONE_REPLICA_NAMES = (
    "data-parallel-size dp-size dp ep-size ep "
    "enable-expert-parallel enable-eplb nnodes node-rank master-addr master-port headless dist-init-addr "
    "load-balance-method moe-a2a-backend moe-runner-backend decode-context-parallel-size dcp"
)
NOT_YET_NAMES = (
    "prefix-caching-hash-algo cc compilation-config O cuda-graph-bs-decode "
    "cuda-graph-max-bs-decode max-num-queued-tokens max-loras max-lora-rank max-cpu-loras max-loaded-loras "
    "max-loras-per-batch grammar-backend "
    "tool-parser-plugin tool-strict-level tool-server "
    "chat-template-content-format default-chat-template-kwargs trust-request-chat-template completion-template "
    "hf-chat-template-name admin-api-key ssl-ca-certs ssl-cert-reqs ssl-keyfile-password enable-ssl-refresh "
    "allowed-methods allowed-headers allow-credentials middleware renderer-num-workers detokenizer-worker-num "
    "stream-interval logprobs-mode logits-processors enable-custom-logit-processor limit-mm-per-prompt "
    "allowed-media-domains allowed-local-media-path media-url-max-file-size-mb limit-mm-data-per-request "
    "model-loader-extra-config cpu-offload-gb enable-hierarchical-cache "
    "enable-sleep-mode enable-memory-saver max-log-len log-config-file log-requests-level decode-log-interval "
    "otlp-traces-endpoint collect-detailed-traces enable-trace custom-histogram-buckets profiler-config "
    "enable-force-include-usage stream-response-default-include-usage model-impl tokens-only enable-scale-out "
    "grpc grpc-mode smg-grpc-mode tokenizer-revision code-revision kv-cache-metrics swap-space fingerprint-mode "
    "schedule-low-priority-values-first enable-log-outputs disable-uvicorn-access-log disable-fastapi-docs"
)
# families of options, by how their names begin
ONE_REPLICA_PREFIXES = ("data-parallel-", "dist-", "eplb-", "moe-")
NOT_YET_PREFIXES = (
    "speculative-",
    "structured-outputs-config",
    "kv-transfer-",
    "kv-offloading-",
    "hicache-",
    "disaggregation-",
    "mm-processor-",
    "lora-",
    "enable-lora",
    "bucket-",
)


def advice(name: str) -> str | None:
    """What to tell a user of `--<name>`; None if neither vLLM nor SGLang has such an option, as far as we know."""
    if name in KNOWN:
        return KNOWN[name]
    bare = name.removeprefix("no-")
    if bare in ONE_REPLICA_NAMES.split() or bare.startswith(ONE_REPLICA_PREFIXES):
        return ONE_REPLICA
    if bare in NOT_YET_NAMES.split() or bare.startswith(NOT_YET_PREFIXES):
        return NOT_YET
    return None
