"""`swarm-client`: generate text over a swarm, talk with a model, and look at a swarm."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from swarm.cli.arguments import Model, Version, repeat_address_options, split_addresses
from swarm.cli.errors import EXIT_FAILED, run, run_program
from swarm.cli.interrupts import end_on_sigterm
from swarm.errors import UsageError

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Use a swarm: generate text, chat, or see who serves what.",
)

Peers = Annotated[
    list[str],
    typer.Option(
        help="Addresses of any members of the swarm, as a server prints them.", metavar="ADDR..."
    ),
]


MaxNewTokens = Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")]
Temperature = Annotated[
    float | None,
    typer.Option(
        min=0.0, help="Sample with this temperature; 0: do not sample.", show_default=False
    ),
]
TopK = Annotated[
    int | None, typer.Option(min=1, help="Sample from the k likeliest tokens.", show_default=False)
]
TopP = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=1.0,
        help="Sample from the likeliest tokens whose probabilities add up to this.",
        show_default=False,
    ),
]
Seed = Annotated[
    int | None, typer.Option(min=0, help="Makes sampling repeatable.", show_default=False)
]
DType = Annotated[
    str, typer.Option(help="auto, float32, bfloat16 or float16. auto: float32 on a CPU.")
]
Revision = Annotated[
    str | None,
    typer.Option(help="Branch, tag or commit of a Hugging Face name.", show_default=False),
]
MixNumerics = Annotated[
    bool,
    typer.Option(
        "--mix-numerics",
        help="Allow a route of servers that compute differently (dtype, quantization).",
    ),
]


@app.callback()
def options(version: Version = False) -> None: ...


@app.command()
def generate(
    peers: Peers,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="The text to continue; - reads it from standard input.", show_default=False
        ),
    ] = None,
    model: Model = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Instead of --prompt: a file with one prompt a line, as text or as JSON objects"
            " with `prompt` and options of their own. Needs --output.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="For --prompts: the answers, one JSON object a line. Those of an earlier run are"
            " kept, and what is missing is added.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    concurrency: Annotated[
        int, typer.Option(min=1, max=256, help="For --prompts: how many are answered at once.")
    ] = 4,
    max_new_tokens: MaxNewTokens = 64,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = None,
    num_beams: Annotated[
        int,
        typer.Option(min=1, help="More than 1: beam search; the text is printed when it is done."),
    ] = 1,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="End before this text; may be given several times.", show_default=False),
    ] = None,
    dtype: DType = "auto",
    revision: Revision = None,
    mix_numerics: MixNumerics = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object in place of the streamed text.")
    ] = False,
) -> None:
    """Continue a text, or all texts of a file: greedily, unless an option says sampling or beams.

    The text goes to standard output; the route, the speed and errors to standard error.
    """

    def command() -> None:
        from swarm.cli.answering import Sampling
        from swarm.cli.connecting import Connection

        end_on_sigterm()
        connection = Connection(model, split_addresses(peers), dtype, revision, mix_numerics)
        sampling = Sampling(
            max_new_tokens, temperature, top_k, top_p, seed, num_beams, tuple(stop or ())
        )
        if prompts is None:
            if prompt is None:
                raise UsageError("nothing to continue; give --prompt TEXT, or --prompts FILE")
            if output is not None:
                raise UsageError("--output is for --prompts; --json prints one answer with details")
            from swarm.cli.generating import Request, generate_text

            generate_text(Request(connection, sampling, prompt, as_json))
            return
        if prompt is not None or output is None:
            raise UsageError("--prompts FILE needs --output FILE, and no --prompt")
        if as_json:
            raise UsageError("--json is for --prompt; what --prompts puts into --output is JSON")
        from swarm.cli.batch import BatchRequest, generate_batch

        if not generate_batch(BatchRequest(connection, sampling, prompts, output, concurrency)):
            raise SystemExit(EXIT_FAILED)

    run(command)


@app.command()
def chat(
    peers: Peers,
    model: Model = None,
    system: Annotated[
        str | None,
        typer.Option(help="What the model is told first (system message).", show_default=False),
    ] = None,
    context_tokens: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Most tokens of the whole conversation; the servers keep room for them. Default:"
            " the model's limit, at most 4096.",
            show_default=False,
        ),
    ] = None,
    template: Annotated[
        Path | None,
        typer.Option(
            help="A file with a chat template (Jinja), for a model that has none.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = None,
    dtype: DType = "auto",
    revision: Revision = None,
    mix_numerics: MixNumerics = False,
) -> None:
    """Talk with a model that has a chat template; from a pipe, each line is a message.

    Ctrl-C ends an answer, the end of the input (Ctrl-D) or /quit the chat. /help tells the rest.
    """

    def command() -> None:
        from swarm.cli.answering import Sampling
        from swarm.cli.chatting import ChatRequest, chat
        from swarm.cli.connecting import Connection

        end_on_sigterm()
        connection = Connection(model, split_addresses(peers), dtype, revision, mix_numerics)
        sampling = Sampling(max_new_tokens, temperature, top_k, top_p, seed)
        chat(ChatRequest(connection, sampling, system, template, context_tokens))

    run(command)


@app.command()
def status(
    peers: Peers,
    model: Annotated[
        str | None,
        typer.Argument(
            help="A model's name as its servers give it, or what `generate` takes. Default: the"
            " one with the most servers.",
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds that each server has to answer.")
    ] = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, no table.")] = False,
) -> None:
    """Show who serves which blocks of a model, how fast, and what is free."""

    def command() -> None:
        from swarm.cli.status import show_status

        end_on_sigterm()
        show_status(split_addresses(peers), model, timeout, as_json)

    run(command)


def main() -> None:
    arguments = repeat_address_options(sys.argv[1:])
    run_program(app, "swarm-client", arguments or ["--help"])
