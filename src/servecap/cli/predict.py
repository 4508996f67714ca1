"""`servecap predict`: figures of cells that nobody measured."""

from __future__ import annotations

from math import floor, log10
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from servecap.cli import output
from servecap.cli.calibrate import TABLE_SLO, say_if_slow
from servecap.cli.param import ENGINE, Finite
from servecap.errors import UsageError

if TYPE_CHECKING:
    from servecap.cell import Cell
    from servecap.predict.answer import Answer, Range
    from servecap.predict.profile import Profile
    from servecap.predict.rows import Rules


@click.command("predict")
@click.option("--profile", type=click.Path(exists=True), help="From `servecap calibrate`.")
@click.option("--cells", type=click.Path(exists=True), help="Predict each row of this table (CSV).")
@click.option("--model", help="A preset such as llama-13b, or a config.json; several by comma.")
@click.option("--gpu", help="Such as a100-40gb, or a YAML file of one's own; several by comma.")
@click.option("--tp", default="1", show_default=True, help="Tensor-parallel degrees, by comma.")
@click.option(
    "--scenario",
    default="chat",
    show_default=True,
    help="chat, chat-zh, docqa, docqa-zh, or fixed:IN/OUT (tokens, all alike).",
)
@click.option("--prompt-tokens", type=Finite(1), help="Mean, instead of the scenario's.")
@click.option("--output-tokens", type=Finite(1), help="Mean, instead of the scenario's.")
@click.option(
    "--context",
    metavar="TOKENS",
    help="Prompt and answer together, such as 1k,4k,16k (k: 1024): the prompts grow.",
)
@click.option(
    "--engine",
    type=ENGINE,
    help="[default: the profile's; else tgi for --cells and vllm otherwise]",
)
@click.option(
    "--slo", help="[default: that of the classic tables for --cells; else 3 s and 100 ms]"
)
@click.option(
    "--users", type=click.IntRange(1, 100_000), help="Figures at that load.  [default: at capacity]"
)
@click.option(
    "--queue", type=click.IntRange(0, 1_000_000), help="Classic stop rule; 0: steady state."
)
@click.option(
    "--weights",
    help="bf16, fp8, int8, int8-weights, int4, awq, gptq or mxfp4.  [default: as the model says]",
)
@click.option(
    "--kv-dtype", type=click.Choice(["fp8", "int8"]), help="Of keys and values.  [default: 16 bits]"
)
@click.option(
    "--prefix-tokens",
    type=click.IntRange(0, 1 << 20),
    default=0,
    help="All prompts share, kept in a cache.",
)
@click.option(
    "--instances", type=click.IntRange(1, 256), default=1, help="Equal, behind one router."
)
@click.option(
    "--routing",
    type=click.Choice(["least-load", "round-robin", "random", "sticky"]),
    default="least-load",
    show_default=True,
)
@click.option(
    "--max-running",
    type=click.IntRange(1, 100_000),
    help="Requests that are computed at once.  [default: the engine's own on that GPU]",
)
@click.option("--max-waiting-tokens", type=click.IntRange(0, 1 << 20), help="TGI's setting.")
@click.option(
    "--max-batch-prefill-tokens",
    type=click.IntRange(1, 1 << 24),
    help="TGI's setting.  [default: 4096; with --cells 32768]",
)
@click.option(
    "--reserve-tokens", type=click.IntRange(1, 1 << 20), help="Reserved for each answer (tgi)."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout instead of text.")
def command(**given: Any) -> int:
    """Predict users, TTFT, TPOT and rates, each with an interval and what binds.

    The engine model simulates the load test. Without --profile its figures rest on data sheets;
    with one, on the measured cells behind it, and the intervals on how wrong it was there.

    \b
    Examples:
      servecap predict --model llama-13b --gpu a30,a100-40gb --tp 1,2,4,8
      servecap predict --model llama-13b --gpu v100,a100-40gb --tp 4,8 --context 1k,2k
      servecap predict --profile ours.json --cells cells.csv --json
    """
    from servecap.predict.conclusions import conclusions

    say_if_slow()
    use, rules, answers = predicted(given)
    if given["as_json"]:
        told = {"profile": use.name, "slo": str(rules.slo), "cells": answers}
        output.print_json({**told, "together": conclusions(answers)})
    else:
        click.echo(text(answers, rules))
    return 0


def predicted(given: dict[str, Any]) -> tuple[Profile, Rules, list[Answer]]:
    """A prediction for each cell that the options name, by which profile and under which rules.

    Of a table's row that cannot be modelled there is the reason; the others are answered.

    Raises:
        UsageError: no row can be, or one that options name.
    """
    from servecap.cli.progress import say
    from servecap.predict import profile as profiles
    from servecap.predict.answer import answer, without_figures
    from servecap.predict.rows import case_of, output_share, slo_of, told, users_of

    known = profiles.load(Path(given["profile"])) if given["profile"] else None
    if (given["cells"] is None) == (given["model"] is None or given["gpu"] is None):
        raise UsageError("say either --cells FILE, or --model and --gpu")
    if given["cells"] is not None and given["context"] is not None:
        raise UsageError("--context: the rows of --cells tell their own lengths")
    rules = _rules(given, known)
    cells = _table(Path(given["cells"])) if given["cells"] else _grid(given)
    use = known or profiles.prior(rules.engine)
    if use.engine != rules.engine:
        raise UsageError(f"the profile is of {use.engine}, not of --engine {rules.engine}")
    share = output_share(cells)
    answers, unknown = [], []
    for cell in cells:
        try:
            case, users = case_of(cell, rules, share), given["users"] or users_of(cell)
        except UsageError as error:
            if not given["cells"]:
                raise
            unknown.append(told(cell, error))
            answers.append(without_figures(cell, str(error)))
            continue
        answers.append(answer(case, use, slo_of(cell, rules), scenario=cell.scenario, users=users))
    if len(unknown) == len(answers):
        raise UsageError(unknown[0])
    for why in unknown:
        say(f"left out: {why}")
    return use, rules, answers


def _rules(given: dict[str, Any], known: Profile | None) -> Rules:
    """How the load test is done: a table's own rules, or today's defaults."""
    import msgspec

    from servecap import slo as slos
    from servecap.predict.rows import Rules

    table = given["cells"] is not None
    text = given["slo"] or (TABLE_SLO if table else slos.DEFAULT_SLO_TEXT)
    engine = given["engine"] or (known.engine if known else "tgi" if table else "vllm")
    rules = msgspec.convert(
        {
            "engine": engine,
            "slo": slos.parse(text),
            "queue": given["queue"] if table else given["queue"] or 0,
            "max_waiting_tokens": given["max_waiting_tokens"],
            "reserve_tokens": given["reserve_tokens"],
            "prefix_tokens": given["prefix_tokens"],
            "instances": given["instances"],
            "routing": given["routing"],
            "weights": given["weights"],
            "kv_dtype": given["kv_dtype"],
        },
        Rules,
    )
    most = given["max_running"] or (known.max_running if known else None)
    prefill = given["max_batch_prefill_tokens"]
    if table or (known and engine == "tgi"):
        return msgspec.structs.replace(
            rules,
            max_running=most or rules.max_running,
            max_batch_prefill_tokens=prefill or rules.max_batch_prefill_tokens,
        )
    return msgspec.structs.replace(  # as `EngineSpec` has it: also in the matrix and the emulator
        rules,
        max_running=most,
        memory_share=0.9,
        max_batch_prefill_tokens=prefill or 4096,
        reserve_share=1.0,
        max_waiting_tokens=20 if rules.max_waiting_tokens is None else rules.max_waiting_tokens,
    )


def _table(path: Path) -> list[Cell]:
    """The rows of a table or a matrix; what is odd about it is said."""
    from servecap.cli.progress import say
    from servecap.matrix import files

    table = files.read(path, loads=True)
    for warning in table.warnings:
        say(f"note: {warning}")
    if not table.cells:
        raise UsageError(f"{path}: holds no cells")
    return list(table.cells)


def _grid(given: dict[str, Any]) -> list[Cell]:
    """One cell for each model, GPU and degree."""
    from servecap.cell import Cell

    lengths = _lengths(given)
    try:
        degrees = [int(n) for n in given["tp"].split(",")]
    except ValueError:
        degrees = []
    if not degrees or min(degrees) < 1:
        raise UsageError(f"--tp {given['tp']!r} is not a list of whole numbers from 1 like 1,2,4")
    return [
        Cell(
            model=model.strip(),
            gpu=gpu.strip(),
            tp=tp,
            scenario=given["scenario"],
            origin="predicted",
            provenance="command line",
            avg_context_tokens=prompt + out,
            avg_output_tokens=out,
        )
        for model in given["model"].split(",")
        for gpu in given["gpu"].split(",")
        for tp in degrees
        for prompt, out in lengths
    ]


def _lengths(given: dict[str, Any]) -> list[tuple[float, float]]:
    """Mean tokens of prompts and answers; several pairs where several contexts are asked for."""
    from servecap.predict.rows import SCENARIOS, usual

    known = usual(given["scenario"])
    prompt, out = given["prompt_tokens"], given["output_tokens"]
    if given["context"] is not None and prompt is not None:
        raise UsageError("--context and --prompt-tokens contradict each other: give one of them")
    if known is None and (out is None or (prompt is None and given["context"] is None)):
        raise UsageError(
            f"--scenario {given['scenario']!r} is none of {', '.join(SCENARIOS)}, fixed:IN/OUT; "
            "give --prompt-tokens and --output-tokens for another"
        )
    out = out or (known.output_tokens if known else 0)
    if given["context"] is None:
        return [(prompt or (known.prompt_tokens if known else 0), out)]
    contexts = [_tokens(word) for word in given["context"].split(",")]
    for context in contexts:
        if context <= out:
            raise UsageError(
                f"--context {context:g} leaves no prompt beside an answer of {out:g} tokens: ask "
                "for more, or give --output-tokens"
            )
    return [(context - out, out) for context in contexts]


def _tokens(word: str) -> float:
    """Tokens written as 4096 or 4k.

    Raises:
        UsageError: it is neither.
    """
    text = word.strip().lower()
    number = text.removesuffix("k")
    if not number.isdecimal() or not int(number):
        raise UsageError(f"--context {word!r} is no list of tokens like 1k,4k,16k or 1024,4096")
    return float(int(number) * (1 if number == text else 1024))


def text(answers: list[Answer], rules: Rules) -> str:
    """A line of figures for each cell, and a line of what binds and what is uncertain."""
    from servecap.predict.conclusions import conclusions
    from servecap.predict.uncertainty import SHARE

    places = [(a.model, a.gpu) for a in answers]
    wide = [max(map(len, names)) for names in zip(*places, ("model", "GPU"), strict=True)]
    rows = [_HEAD, *map(_figures, answers)]
    columns = [max(len(row[k]) for row in rows if row) for k in range(len(_HEAD))]
    lines = [
        f"predicted, not measured; in brackets {SHARE:.0%} intervals; {rules.engine}, {rules.slo}",
        f"{'model':<{wide[0]}}  {'GPU':<{wide[1]}}  TP  {_columns(_HEAD, columns)}".rstrip(),
    ]
    several = len({(a.scenario, a.context_tokens) for a in answers}) > len(
        {a.scenario for a in answers}
    )
    for a, row in zip(answers, rows[1:], strict=True):
        head = f"{a.model:<{wide[0]}}  {a.gpu:<{wide[1]}}  {a.tp:>2}"
        at = f"{a.context_tokens:,} tokens; " if several and a.context_tokens else ""
        if a.impossible is not None:
            lines.append(f"{head}  {at}not possible: {a.impossible}")
            continue
        known = "another load of this place was measured" if a.kind == "measured" else a.kind
        lines.append(f"{head}  {_columns(row, columns)}".rstrip())
        lines += [f"    {text}" for text in (f"{at}{known}; {a.binds}", *_shares(a), *a.notes)]
    together = conclusions(answers)
    return "\n".join([*lines, *(["", "together:"] if together else []), *together])


_HEAD = ("max users", "at", "TTFT s", "TPOT ms", "requests/s")


def _figures(a: Answer) -> tuple[str, ...]:
    if a.impossible is not None:
        return ()
    return (
        _range(a.max_users, 1, whole=True), str(a.users or 0), _range(a.ttft_s, 1),
        _range(a.tpot_s, 1e3), _range(a.requests_per_s, 1),
    )  # fmt: skip


def _columns(row: tuple[str, ...], widths: list[int]) -> str:
    return "  ".join(f"{x:>{w}}" if k == 1 else f"{x:<{w}}" for k, (x, w) in
                     enumerate(zip(row, widths, strict=True)))  # fmt: skip


def _shares(a: Answer) -> list[str]:
    """Whether computing or reading takes the time, in prompts (TTFT) and in decode (TPOT)."""
    if a.prefill_compute_share is None or not a.step_shares:
        return []
    compute = a.step_shares["matrices (compute)"]
    read = sum(share for name, share in a.step_shares.items() if "bandwidth" in name)
    return [
        f"computing takes {a.prefill_compute_share:.0%} of a prompt's step, and "
        f"{compute:.0%} of a decode step, where reading takes {read:.0%}"
    ]


def _range(r: Range | None, unit: float, *, whole: bool = False) -> str:
    """The figure to two digits (users to the last), and its interval as finely."""
    if r is None:
        return "n/a"
    value, low, high = (x * unit for x in (r.value, r.low, r.high))
    digits = 0 if whole or value <= 0 else max(0, 1 - floor(log10(value)))
    return f"{value:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"
