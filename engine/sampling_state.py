"""How each slot samples: parameters and token counts, on the device, with the host's own copy of what steers it.

The host copy decides which transformations a step needs at all, so that a step of plain greedy rows is one argmax
and no decision waits for the device.
"""

from __future__ import annotations

import numpy as np
import torch

from ..kernels.sampling.interface import Penalties, Sampling, SamplingParameters
from ..kernels.staged import on_device
from ..scheduler.arrays import Int32
from ..scheduler.messages import SamplingParams
from .streams import Fetch, HostStream, Stream
from .token_rules import TokenRules, rules_of

GREEDY_TEMPERATURE = 1e-5  # at or below it the most likely token is taken


class SamplingState:
    """Arrays over slots. `write` fills one when a request takes it; `count` follows what penalised slots sample."""

    def __init__(
        self, num_slots: int, vocab_size: int, device: torch.device, stream: Stream | None = None
    ) -> None:
        self.vocab_size = vocab_size
        self.device = device
        self._stream = stream or HostStream()
        # What the host steers by.
        self.penalised = np.zeros(num_slots, np.bool_)
        self.biased = np.zeros(num_slots, np.bool_)
        self.ruled = np.zeros(num_slots, np.bool_)  # allowed_token_ids or bad_words
        self.constrained = np.zeros(num_slots, np.bool_)  # by a grammar
        self.min_length = np.zeros(num_slots, np.int32)  # tokens, prompt included, before a stop id may come
        self.logprobs = np.full(num_slots, -1, np.int32)
        self.prompt_logprobs = np.full(num_slots, -1, np.int32)
        self.num_prompt_tokens = np.zeros(num_slots, np.int32)
        self.seeds = np.zeros(num_slots, np.uint64)
        self.plain = np.ones(num_slots, np.bool_)  # greedy, and nothing else asked for
        self.changed = np.zeros(
            num_slots, np.bool_
        )  # logits are penalised, biased or ruled, whatever their place
        self.follows = np.zeros(num_slots, np.bool_)  # how a token is drawn depends on those drawn before
        # What the device computes with.
        self.drawing = SamplingParameters(
            temperature=torch.zeros(num_slots, device=device),
            top_k=torch.zeros(num_slots, dtype=torch.int32, device=device),
            top_p=torch.ones(num_slots, device=device),
            min_p=torch.zeros(num_slots, device=device),
            greedy=np.ones(num_slots, np.bool_),
            truncated=np.zeros(num_slots, np.bool_),
        )
        self.presence = torch.zeros(num_slots, device=device)
        self.frequency = torch.zeros(num_slots, device=device)
        self.repetition = torch.ones(num_slots, device=device)
        self._bias: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._stop_ids: dict[int, torch.Tensor] = {}
        self._rules: dict[int, TokenRules] = {}
        # Tokens that rules have not been told yet: they were on the device when their step was enqueued.
        self._unfollowed: list[tuple[list[tuple[int, TokenRules]], Fetch]] = []
        # Counts exist only for slots with penalties: `_rows` says where.
        self._rows: dict[int, int] = {}
        self._free_rows: list[int] = []
        self._output_counts = torch.zeros((0, vocab_size), dtype=torch.int32, device=device)
        self._prompt_has = torch.zeros((0, vocab_size), dtype=torch.bool, device=device)

    def write(self, slot: int, tokens: Int32, num_prompt_tokens: int, sampling: SamplingParams) -> None:
        """The request in `slot` is this one from now on; `tokens` are its prompt and the output known so far."""
        greedy = sampling.temperature <= GREEDY_TEMPERATURE
        penalised = bool(
            sampling.presence_penalty or sampling.frequency_penalty or sampling.repetition_penalty != 1.0
        )
        self.penalised[slot] = penalised
        self.biased[slot] = bool(sampling.logit_bias)
        self.constrained[slot] = sampling.grammar is not None
        self.min_length[slot] = num_prompt_tokens + sampling.min_tokens if sampling.stop_token_ids else 0
        self.logprobs[slot] = sampling.logprobs
        self.prompt_logprobs[slot] = sampling.prompt_logprobs
        self.num_prompt_tokens[slot] = num_prompt_tokens
        self.seeds[slot] = sampling.seed & 0xFFFFFFFFFFFFFFFF
        self.plain[slot] = (
            greedy
            and not penalised
            and not sampling.logit_bias
            and not sampling.allowed_token_ids
            and not sampling.bad_words
            and sampling.logprobs < 0
            and len(tokens) >= self.min_length[slot]
        )
        drawing = self.drawing
        drawing.greedy[slot] = greedy
        drawing.truncated[slot] = not greedy and (sampling.top_k > 0 or sampling.top_p < 1.0)
        drawing.temperature[slot] = 0.0 if greedy else sampling.temperature
        drawing.top_k[slot] = min(max(sampling.top_k, 0), self.vocab_size)
        drawing.top_p[slot] = sampling.top_p
        drawing.min_p[slot] = sampling.min_p
        self._write_bias(slot, sampling)
        self._write_counts(slot, tokens, num_prompt_tokens, sampling, penalised)
        self._write_rules(slot, tokens[num_prompt_tokens:], sampling)
        self.changed[slot] = penalised or self.biased[slot] or self.ruled[slot]
        rules = self._rules.get(slot)
        self.follows[slot] = penalised or (rules is not None and rules.follows_output)

    def _write_bias(self, slot: int, sampling: SamplingParams) -> None:
        self._bias.pop(slot, None)
        if sampling.logit_bias:
            ids = np.array(list(sampling.logit_bias), np.int64)
            values = np.array(list(sampling.logit_bias.values()), np.float32)
            self._bias[slot] = (on_device(ids, self.device), on_device(values, self.device))
        self._stop_ids.pop(slot, None)
        if sampling.min_tokens and sampling.stop_token_ids:
            self._stop_ids[slot] = on_device(np.array(sampling.stop_token_ids, np.int64), self.device)

    def _write_counts(
        self, slot: int, tokens: Int32, num_prompt_tokens: int, sampling: SamplingParams, penalised: bool
    ) -> None:
        row = self._rows.pop(slot, None)
        if row is not None:
            self._free_rows.append(row)
        if not penalised:
            return
        self.presence[slot] = sampling.presence_penalty
        self.frequency[slot] = sampling.frequency_penalty
        self.repetition[slot] = sampling.repetition_penalty
        if not self._free_rows:
            self._grow()
        row = self._rows[slot] = self._free_rows.pop()
        prompt, output = tokens[:num_prompt_tokens], tokens[num_prompt_tokens:]
        has = np.bincount(prompt, minlength=self.vocab_size) > 0
        counts = np.bincount(output, minlength=self.vocab_size).astype(np.int32)
        self._prompt_has[row] = on_device(has, self.device)
        self._output_counts[row] = on_device(counts, self.device)

    def _write_rules(self, slot: int, output: Int32, sampling: SamplingParams) -> None:
        self._rules.pop(slot, None)
        rules = rules_of(sampling, output, self.vocab_size, self.device)
        self.ruled[slot] = rules is not None
        if rules is not None:
            self._rules[slot] = rules

    def _grow(self) -> None:
        old = len(self._output_counts)
        more = max(1, old)
        self._free_rows += range(old, old + more)
        self._output_counts = torch.cat(
            (self._output_counts, self._output_counts.new_zeros((more, self.vocab_size)))
        )
        self._prompt_has = torch.cat((self._prompt_has, self._prompt_has.new_zeros((more, self.vocab_size))))

    # ------------------------------------------------------------------------------------------------- transformations

    def penalise(self, kernels: Sampling, logits: torch.Tensor, slots: Int32) -> None:
        """float32 logits (n, vocab_size) of penalised `slots`, in place: repetition, then frequency and presence."""
        penalties = Penalties(
            repetition=self.repetition,
            frequency=self.frequency,
            presence=self.presence,
            output_counts=self._output_counts,
            prompt_has=self._prompt_has,
        )
        kernels.penalise(logits, penalties, slots, self._count_rows(slots))

    def add_bias(self, logits: torch.Tensor, slot: int) -> None:
        """logits (vocab_size,) of one biased slot, in place."""
        ids, values = self._bias[slot]
        logits.index_add_(0, ids, values)

    def forbid_stop(self, logits: torch.Tensor, slot: int) -> None:
        """logits (vocab_size,) of one slot that has not produced min_tokens yet, in place."""
        logits.index_fill_(0, self._stop_ids[slot], float("-inf"))

    def rule_out(self, logits: torch.Tensor, slot: int) -> None:
        """logits (vocab_size,) of one ruled slot, in place. Rules that look back wait for the tokens before."""
        if self._rules[slot].follows_output:
            self._catch_up()
        self._rules[slot].apply(logits)

    def follow(self, slots: list[int], tokens: torch.Tensor) -> None:
        """Ruled `slots` sampled `tokens` (n,). Rules that look back are told when they are next applied."""
        rules = [(row, self._rules[slot]) for row, slot in enumerate(slots)]
        looking_back = [(row, each) for row, each in rules if each.follows_output]
        if looking_back:
            self._unfollowed.append((looking_back, self._stream.fetch([tokens])))

    def _catch_up(self) -> None:
        unfollowed, self._unfollowed = self._unfollowed, []
        for rules, fetch in unfollowed:
            tokens = fetch.arrays()[0]
            for row, each in rules:
                each.follow(int(tokens[row]))

    def count(self, slots: Int32, tokens: torch.Tensor) -> None:
        """Penalised `slots` sampled `tokens` (n,)."""
        rows = on_device(self._count_rows(slots), self.device)
        self._output_counts[rows, tokens.long()] += 1

    def _count_rows(self, slots: Int32) -> Int32:
        return np.array([self._rows[slot] for slot in slots.tolist()], np.int32)
