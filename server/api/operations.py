"""What operators, probes and routers ask: health, readiness, load, metrics, version, and to drop the prefix cache."""

from __future__ import annotations

import asyncio
import time
from array import array
from datetime import UTC, datetime
from typing import Any

from msgspec.structs import asdict
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive

from ...scheduler.messages import FinishReason, PoolingParams, SamplingParams
from ..metrics.catalogue import Metrics
from ..metrics.exposition import CONTENT_TYPE, Exposition
from ..requests.engines import Engine
from ..requests.generation import ClientGone, Generation, GenerationFailed
from ..requests.pooled import PooledPrompt
from ..requests.pooling import PooledRequest
from ..requests.sequence import Failure, Sequence, TokenLogprob
from ..services import Services
from .endpoint import check_serving
from .errors import from_failure, unavailable
from .tokenize import json_response

PROBE_TIMEOUT_S = 60.0


class SilentSink:
    """Only the end of the sequence matters."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation

    def prompt_logprobs(self, entries: list[TokenLogprob]) -> None: ...

    def text(self, text: str, logprobs: list[TokenLogprob] | None) -> None: ...

    def finish(self, reason: FinishReason, stop_reason: int | str | None) -> None:
        self._generation.sequence_ended()

    def fail(self, failure: Failure) -> None:
        self._generation.sequence_failed(failure)


class Operations:
    def __init__(self, services: Services, exposition: Exposition) -> None:
        self._services = services
        self._exposition = exposition
        self._probe_metrics = Metrics()  # probes are nobody's requests: the exported numbers leave them out

    async def health(self, request: Request) -> Response:
        """Is this process up, and may it still become or be useful? Only a given-up engine says no."""
        state, detail = self._services.link.condition
        if state == "failed":
            return json_response({"status": "failed", "reason": detail}, 503)
        return json_response({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Would a request be served now?"""
        state, detail = self._services.link.condition
        if state == "ready":
            return json_response({"status": "ready"})
        return json_response({"status": state, "detail": detail}, 503)

    async def health_generate(self, request: Request) -> Response:
        """One token through the engine, or one prompt if it reads them only."""
        info = check_serving(self._services, 1, "generate", "embed", "classify")
        task = info.tasks[0]
        begin = time.monotonic()
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                if task == "generate":
                    await self._probe_generation(request.receive)
                else:
                    await self._probe_pooling(request.receive, PoolingParams(task=task))
        except TimeoutError:
            raise unavailable(f"the engine gave no answer within {PROBE_TIMEOUT_S:.0f} s") from None
        except GenerationFailed as error:
            raise from_failure(error.failure) from None
        except ClientGone:
            return Response(status_code=499)
        return json_response({"status": "ok", "seconds": round(time.monotonic() - begin, 6)})

    async def _probe_pooling(self, receive: Receive, params: PoolingParams) -> None:
        link = self._services.link
        probe = PooledRequest(link, self._probe_metrics, 1)
        prompt = self._services.tokenizer.encode("1", add_special_tokens=True) or array("i", [0])
        probe.prompts.append(
            PooledPrompt(request_id=link.new_id(), prompt=prompt, params=params, owner=probe, priority=-1)
        )
        await probe.run(receive)

    async def _probe_generation(self, receive: Receive) -> None:
        services = self._services
        generation = Generation(services.link, self._probe_metrics, 1)
        prompt = services.tokenizer.encode("1", add_special_tokens=True) or array("i", [0])
        generation.sequences.append(
            Sequence(
                request_id=services.link.new_id(),
                prompt=prompt,
                sampling=SamplingParams(max_tokens=1, temperature=0.0),
                detokenizer=services.tokenizer.detokenization.start(prompt, skip_special_tokens=True),
                sink=SilentSink(generation),
                metrics=self._probe_metrics,
                stop=[],
                include_stop=False,
                priority=-1,
            )
        )
        async with generation.running(receive, max_tokens=1):
            await generation.finished()

    async def version(self, request: Request) -> Response:
        return json_response({"version": self._services.version})

    async def load(self, request: Request) -> Response:
        """vLLM's one number: requests in progress."""
        return json_response({"server_load": int(self._services.metrics.total("concurrent_requests"))})

    async def loads(self, request: Request) -> Response:
        """Each engine's load, and their sum, as SGLang's routers read it."""
        loads = [describe_load(engine) for engine in self._services.link.engines]
        running = sum(load["num_running_reqs"] for load in loads)
        waiting = sum(load["num_waiting_reqs"] for load in loads)
        count = max(1, len(loads))
        body = {
            "timestamp": datetime.now(UTC).isoformat(),
            "version": self._services.version,
            "dp_rank_count": len(loads),
            "loads": loads,
            "aggregate": {
                "total_running_reqs": running,
                "total_waiting_reqs": waiting,
                "total_reqs": running + waiting,
                "total_in_flight_tokens": sum(load["in_flight_tokens"] for load in loads),
                "avg_token_usage": sum(load["token_usage"] for load in loads) / count,
                "avg_utilization": sum(load["utilization"] for load in loads) / count,
            },
        }
        return json_response(body)

    async def metrics(self, request: Request) -> Response:
        return Response(self._exposition.text(), headers={"Content-Type": CONTENT_TYPE})

    async def flush_cache(self, request: Request) -> Response:
        """Drop every cached page that no request holds."""
        check_serving(self._services, 0)
        try:
            replies = await self._services.link.flush_cache()
        except TimeoutError:
            raise unavailable("the engine did not answer") from None
        ok = all(reply.ok for reply in replies)
        messages = [reply.message for reply in replies]
        return json_response({"success": ok, "message": "; ".join(messages)}, 200 if ok else 500)


def describe_load(engine: Engine) -> dict[str, Any]:
    """All of `EngineLoad`, and SGLang's names for the part of it that its routers read."""
    load, info = engine.load, engine.info
    total_tokens = info.num_pages * info.page_size if info else 0
    max_running = info.max_num_seqs if info else 0
    own = asdict(load)
    del own["iteration_tokens"], own["iteration_tokens_sum"]
    return {
        **own,
        "dp_rank": engine.engine_id,
        "status": engine.state,
        "num_running_reqs": load.num_running,
        "num_waiting_reqs": load.num_waiting,
        "num_used_tokens": load.held_pages * (info.page_size if info else 0),
        "max_total_num_tokens": total_tokens,
        "token_usage": load.kv_usage,
        "cache_hit_rate": load.cached_prompt_tokens / load.prompt_tokens if load.prompt_tokens else 0.0,
        "utilization": load.num_running / max_running if max_running else 0.0,
        "max_running_requests": max_running,
    }
