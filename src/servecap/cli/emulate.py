"""`servecap emulate`: an LLM server without a GPU."""

from __future__ import annotations

from typing import Any

import click

from servecap.cli.param import ENGINE
from servecap.cli.progress import say


@click.command("emulate")
@click.option("--model", required=True, help="A preset such as llama-13b, or a config.json.")
@click.option("--gpu", required=True, help="Such as a100-40gb, v100, or a YAML file.")
@click.option("--tp", type=click.IntRange(1), default=1, show_default=True)
@click.option(
    "--engine",
    type=ENGINE,
    default="vllm",
    show_default=True,
    help="What decides who is computed when, see docs/prediction.md.",
)
@click.option("--weights", help="Such as fp8 or awq.  [default: as the model says]")
@click.option("--kv-dtype", type=click.Choice(["fp8", "int8"]), help="[default: 16 bits]")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=int, default=8000, show_default=True, help="0: any free one.")
@click.option("--model-name", help="Name that clients use.  [default: the model]")
@click.option(
    "--max-running", type=click.IntRange(1), help="[default: the engine's own on that GPU]"
)
@click.option("--prefix-cache", is_flag=True, help="What prompts share is computed once.")
@click.option("--max-queue", type=click.IntRange(0), help="More waiting than this get HTTP 429.")
@click.option("--speed", type=float, default=1.0, show_default=True, help="Faster than real time.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--tgi-prefill-header", is_flag=True, help="Send x-prefill-time, as some forks do.")
@click.option("--fail-share", type=float, default=0.0, help="Share of requests that get HTTP 500.")
@click.option("--cut-share", type=float, default=0.0, help="Share of streams that are cut.")
@click.option("--freeze", type=(float, float), metavar="AT S", help="Stand still once, seconds.")
def command(freeze: tuple[float, float] | None, **given: Any) -> int:
    """Serve like an LLM server, without a GPU.

    Speaks the OpenAI and TGI APIs, batches continuously by an engine model of the GPU, and so gets
    slower with load as a real server does. With SERVECAP_EMULATE_API_KEY set, it asks for that key.

    \b
    Examples:
      servecap emulate --model llama-13b --gpu a100-40gb --tp 4 --port 8000
      curl http://127.0.0.1:8000/v1/models
    """
    import os

    from servecap.emulate.config import EmulatorConfig
    from servecap.emulate.launch import serve

    at_s, freeze_s = freeze or (0.0, 0.0)
    config = EmulatorConfig(
        **given,
        freeze_at_s=at_s,
        freeze_s=freeze_s,
        api_key=os.environ.get("SERVECAP_EMULATE_API_KEY"),
    )

    def ready(url: str) -> None:
        say(
            f"emulating {config.served_name} on {config.gpu} x {config.tp} ({config.engine} "
            f"scheduler) at {url}  (Ctrl-C ends it)"
        )

    serve(config, ready)
    return 0
