"""From what the user asked for to an endless, repeatable stream of requests."""

from __future__ import annotations

import difflib
import os
from collections import Counter as Tally
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import msgspec

from servecap import rand
from servecap.errors import UsageError
from servecap.record import Message, Request, TokenSource
from servecap.scenario import Replay, WorkloadSpec
from servecap.workload import builtin, fixed, formats, mix, replay, sessions, tokens, traces
from servecap.workload.sample import Dropped, Parsed, Sample, dropped_text, tally
from servecap.workload.words import WORDS, Draws

# "natural" must not let a model that never ends its answer run on until the context is full;
# and some servers cut answers after 20 or 100 tokens when no limit is sent.
NATURAL_CAP_TOKENS = 2048
MAX_OUTPUT_TOKENS = fixed.MAX_TOKENS
_MARK_WORDS = 4  # 10**11 combinations


class Part(msgspec.Struct, frozen=True):
    """A workload and its share of a mix."""

    share: float
    workload: Workload


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """Prompts ready to be sent, what is known of them, and how long answers shall be.

    `samples` have their tokens counted; it is empty where `fixed` makes the prompts.
    `records` = samples + what was dropped.
    """

    name: str
    note: str  # one line: origin, size, mean tokens, what was dropped, whether estimated
    output: str  # "data", "natural" or a number of tokens
    unique: bool
    counter: tokens.Counter
    samples: tuple[Sample, ...] = ()
    fixed: fixed.Fixed | None = None
    player: replay.Player | None = None  # plays a trace
    synthetic: sessions.Synthetic | None = None
    sessions: bool = False  # all turns of each sample's conversation are sent
    parts: tuple[Part, ...] = ()
    records: int = 0
    dropped: dict[str, int] = {}

    @property
    def token_source(self) -> TokenSource:
        """How prompt and answer tokens were counted here; the server's usage beats it."""
        return self.counter.source

    def requests(self, seed: int, *, first_id: int = 0) -> Iterator[Request]:
        """Endless requests, numbered from *first_id* and the same for the same arguments.

        Each pass over the samples is shuffled anew. With `unique` every prompt starts with a
        mark of four words that no other request of this seed has.
        """
        if self.fixed is not None:
            return self.fixed.requests(seed, first_id)
        if self.synthetic is not None:
            return self.synthetic.requests(seed, first_id)
        if self.parts:
            streams = [
                part.workload.requests(rand.derive(seed, "mix", place))
                for place, part in enumerate(self.parts)
            ]
            return mix.merged([part.share for part in self.parts], streams, seed, first_id)
        if self.player is not None:
            tokens = None if self.output == "data" else self._asked_tokens()
            return self.player.requests(seed, tokens, exact=self.output != "natural")
        return self._sampled(seed, first_id)

    def _sampled(self, seed: int, first_id: int) -> Iterator[Request]:
        marks = Draws(WORDS, _MARK_WORDS, seed, "workload", "mark")
        request_id, passes, session = first_id, 0, 0
        while True:
            order = list(self.samples)
            rand.stream(seed, "workload", "pass", passes).shuffle(order)
            for sample in order:
                mark = f"[{' '.join(marks[request_id])}] " if self.unique else ""
                if self.sessions:
                    yield from self._session(sample, request_id, session, mark)
                    request_id += len(sample.session)
                    session += 1
                    continue
                yield self._request(sample, request_id, mark)
                request_id += 1
            passes += 1

    def _request(self, sample: Sample, request_id: int, mark: str) -> Request:
        first, *rest = sample.messages
        prompt_tokens = sample.prompt_tokens
        if mark:
            first = Message(first.role, mark + first.content)
            if prompt_tokens is not None:
                prompt_tokens += self.counter.count(mark)
        return Request(
            request_id=request_id,
            messages=(first, *rest),
            prompt_tokens=prompt_tokens,
            max_output_tokens=self._output_tokens(sample),
            exact_output=self.output != "natural",
            prefix_tokens=None if mark else sample.prefix_tokens,
        )

    def _session(self, sample: Sample, first_id: int, session: int, mark: str) -> Iterator[Request]:
        """The sample's turns; the mark stays in the history, so that they share their prefix."""
        mark_tokens = self.counter.count(mark) if mark else 0
        before = None
        for number, turn in enumerate(sample.session):
            first, *rest = turn.messages
            prompt_tokens = turn.prompt_tokens + mark_tokens
            asked = turn.answer_tokens if self.output == "data" else self._asked_tokens()
            yield Request(
                request_id=first_id + number,
                messages=(Message(first.role, mark + first.content), *rest),
                prompt_tokens=prompt_tokens,
                max_output_tokens=asked,
                exact_output=self.output != "natural",
                session=session,
                turn=number,
                turns_left=len(sample.session) - 1 - number,
                prefix_tokens=before,
            )
            before = prompt_tokens

    def _output_tokens(self, sample: Sample) -> int | None:
        return sample.answer_tokens if self.output == "data" else self._asked_tokens()

    def _asked_tokens(self) -> int:
        return NATURAL_CAP_TOKENS if self.output == "natural" else int(self.output)


def load(spec: WorkloadSpec) -> Workload:
    """The workload that *spec* asks for.

    Raises:
        UsageError: an unknown name, a file that cannot be used, an output length that makes no
            sense or that the data does not have, or nothing left after filtering.
    """
    output = _output(spec.output)
    if spec.replay is not None:
        return _load_trace(spec, spec.replay, output)
    if spec.source.startswith(mix.PREFIX):
        return _load_mix(spec, output)
    if spec.source.startswith(sessions.PREFIX):
        return _load_synthetic(spec, output)
    if spec.sessions and spec.source.startswith(fixed.PREFIX):
        raise UsageError(f"workload {spec.source} has no sessions: write sessions:TURNSxIN/OUT")
    if spec.source.startswith(fixed.PREFIX):
        return _load_fixed(spec, output)
    if spec.source in builtin.BUILTINS:
        if spec.format is not None:
            raise UsageError(f"workload {spec.source} is built in: leave --format away")
        parsed, origin = builtin.load(spec.source), builtin.BUILTINS[spec.source].origin
    else:
        _check_exists(spec.source)
        parsed = formats.load(spec.source, spec.format)
        origin = f"{Path(spec.source).name} ({parsed.format})"
    counter = tokens.counter(spec.tokenizer)
    parsed = _filter(_count(parsed, counter), spec.source, output)
    note = _note(origin, parsed, counter.source)
    if spec.sessions:
        known = {"data": None, "natural": sessions.STAND_IN_TOKENS}
        stand_in = known[output] if output in known else int(output)
        parsed = sessions.with_sessions(parsed, counter, stand_in)
        note += sessions.note(parsed)
    return Workload(
        name=spec.source,
        note=note,
        output=output,
        sessions=spec.sessions,
        unique=spec.unique,
        counter=counter,
        samples=parsed.samples,
        records=parsed.records,
        dropped=parsed.dropped,
    )


def _output(text: str) -> str:
    if text in ("data", "natural"):
        return text
    if text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= MAX_OUTPUT_TOKENS:
        return str(int(text))
    raise UsageError(
        f"output length {text!r} is not 'data', 'natural' or a number of tokens within 1 and"
        f" {MAX_OUTPUT_TOKENS}"
    )


def _load_fixed(spec: WorkloadSpec, output: str) -> Workload:
    if spec.format is not None:
        raise UsageError(f"workload {spec.source} makes its own prompts: leave --format away")
    counter = tokens.counter(spec.tokenizer)
    plan = fixed.parse(spec.source, counter)
    if output not in ("data", str(plan.out_tokens)):
        raise UsageError(
            f"workload {spec.source} already asks for {plan.out_tokens} output tokens, which"
            f" contradicts {output!r}; change one of the two"
        )
    exact = counter.source is TokenSource.TOKENIZER
    return Workload(
        name=spec.source,
        note=(
            f"random words: every prompt {plan.in_tokens} tokens, every answer {plan.out_tokens}; "
            + ("counted with the tokenizer given" if exact else "an estimate")
            + ", to be confirmed by the server's usage (a chat template adds its own tokens)"
        ),
        output="data",
        unique=True,
        counter=counter,
        fixed=plan,
    )


def _load_mix(spec: WorkloadSpec, output: str) -> Workload:
    if spec.format is not None:
        raise UsageError("a mix tells each format by itself: leave --format away")
    parts = tuple(
        Part(share, load(msgspec.structs.replace(spec, source=name)))
        for share, name in mix.parse(spec.source)
    )
    return Workload(
        name=spec.source,
        note="; ".join(f"{p.share:.0%} {p.workload.name} ({p.workload.note})" for p in parts),
        output=output,
        unique=spec.unique,
        counter=parts[0].workload.counter,
        parts=parts,
        records=sum(p.workload.records for p in parts),
        dropped=dict(sum((Tally(p.workload.dropped) for p in parts), Tally())),
    )


def _load_synthetic(spec: WorkloadSpec, output: str) -> Workload:
    turns, in_tokens, out_tokens = sessions.parse(spec.source)
    single = msgspec.structs.replace(
        spec, source=f"{fixed.PREFIX}{in_tokens}/{out_tokens}", sessions=False
    )
    made = _load_fixed(single, output)
    if made.fixed is None:
        raise AssertionError(made)
    return msgspec.structs.replace(
        made,
        name=spec.source,
        note=(
            f"sessions of {turns} turns of random words: each turn adds {in_tokens} tokens and"
            f" gets {out_tokens}; the history holds made-up answers of that length"
        ),
        fixed=None,
        synthetic=sessions.Synthetic(turns=turns, words=made.fixed),
    )


def _load_trace(spec: WorkloadSpec, scale: Replay, output: str) -> Workload:
    for name, value in (("--time-scale", scale.time_scale), ("--rate-scale", scale.rate_scale)):
        if not 0 < value < float("inf"):
            raise UsageError(f"{name} {value:g} must be more than 0")
    trace = traces.load(spec.source, spec.format)
    counter = tokens.counter(spec.tokenizer)
    words = fixed.Fixed(
        in_tokens=1, out_tokens=1, pieces=fixed.pieces_for(spec.source, counter), counter=counter
    )
    rows = trace.rows
    return Workload(
        name=spec.source,
        note=(
            f"{Path(spec.source).name} ({trace.format} trace): {len(rows)} of {trace.records} rows"
            f" over {trace.span_s:.0f} s, played x{scale.time_scale:g} in time and"
            f" x{scale.rate_scale:g} in rate, random words, mean tokens: prompt"
            f" {fmean(row.in_tokens for row in rows):.0f}, answer"
            f" {fmean(row.out_tokens for row in rows):.0f}; dropped: {dropped_text(trace.dropped)}"
        ),
        output=output,
        unique=spec.unique,
        counter=counter,
        player=replay.Player(trace=trace, scale=scale, words=words, share=not spec.unique),
        records=trace.records,
        dropped=trace.dropped,
    )


def _check_exists(source: str) -> None:
    """A misspelt built-in name is answered with the names, and not only with "no such file"."""
    if source.strip() and (Path(source).name != source or Path(source).suffix):
        return  # meant as a path: reading it tells what is wrong
    if source and os.path.exists(source):
        return
    near = difflib.get_close_matches(source, builtin.BUILTINS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UsageError(
        f"workload {source!r} is neither a file nor a built-in: {hint}built in are"
        f" {', '.join(builtin.BUILTINS)}, and fixed:IN/OUT"
    )


def _count(parsed: Parsed, counter: tokens.Counter) -> Parsed:
    """The same samples with prompt, answer and shared prefix counted."""
    shared = Tally(sample.prefix_key for sample in parsed.samples)
    prefixes: dict[str, int] = {}  # many questions about one document: count it once
    counted = []
    for sample in parsed.samples:
        key, prefix_tokens = sample.prefix_key, None
        if key is not None and shared[key] > 1:
            if key not in prefixes:
                document = sample.messages[0].content[: sample.prefix_chars]
                prefixes[key] = counter.count(document)
            prefix_tokens = prefixes[key]
        answer_tokens = sample.answer_tokens
        if answer_tokens is None and sample.answer and sample.answer.strip():
            answer_tokens = counter.count(sample.answer)
        counted.append(
            msgspec.structs.replace(
                sample,
                prompt_tokens=sum(counter.count(message.content) for message in sample.messages),
                answer_tokens=answer_tokens,
                prefix_tokens=prefix_tokens,
            )
        )
    return msgspec.structs.replace(parsed, samples=tuple(counted))


def vllm_rule(sample: Sample) -> Sample | Dropped:
    """The sample, unless vLLM's ShareGPT filter on lengths would leave it out.

    Source:
        vLLM's serving benchmark: a prompt or an answer below 4 tokens, a prompt above 1024, and
        both together above 2048 are left out.
    """
    prompt, answer = sample.prompt_tokens or 0, sample.answer_tokens or 0
    if prompt < 4:
        return Dropped("prompt below 4 tokens")
    if answer < 4:
        return Dropped("answer below 4 tokens")
    if prompt > 1024:
        return Dropped("prompt above 1024 tokens")
    if prompt + answer > 2048:
        return Dropped("prompt + answer above 2048 tokens")
    return sample


def _answered(sample: Sample) -> Sample | Dropped:
    return sample if sample.answer_tokens else Dropped("no answer to take the length from")


def _filter(parsed: Parsed, source: str, output: str) -> Parsed:
    outcomes: list[Sample | Dropped] = list(parsed.samples)
    if parsed.format == "sharegpt":
        outcomes = [vllm_rule(sample) for sample in parsed.samples]
    if output == "data":
        if not any(sample.answer_tokens for sample in parsed.samples) and parsed.samples:
            raise UsageError(
                f"workload {source} has no answers to take the output length from: give"
                " --output N for exactly N tokens, or --output natural"
            )
        outcomes = [_answered(out) if isinstance(out, Sample) else out for out in outcomes]
    kept = tally(parsed.format, outcomes)
    dropped = dict(Tally(parsed.dropped) + Tally(kept.dropped))
    if not kept.samples:
        raise UsageError(
            f"workload {source} has no usable prompt: of {parsed.records} records"
            f" ({parsed.format}) were dropped: {dropped_text(dropped)}"
        )
    return msgspec.structs.replace(parsed, samples=kept.samples, dropped=dropped)


def _note(origin: str, parsed: Parsed, source: TokenSource) -> str:
    prompts = fmean(sample.prompt_tokens or 0 for sample in parsed.samples)
    answers = [sample.answer_tokens for sample in parsed.samples if sample.answer_tokens]
    marker = " (estimated)" if source is TokenSource.ESTIMATE else ""
    answer = f"{fmean(answers):.0f}" if answers else "n/a"
    return (
        f"{origin}: {len(parsed.samples)} prompts, mean tokens{marker}: prompt {prompts:.0f},"
        f" answer {answer}; dropped: {dropped_text(parsed.dropped)}"
    )
