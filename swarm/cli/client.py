"""`swarm-client`: generate text over a swarm, and look at one."""

import sys
from typing import Annotated

import typer

from swarm.cli.arguments import repeat_address_options, split_addresses
from swarm.cli.errors import run, run_program
from swarm.cli.interrupts import interrupt_on_sigterm

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Use a swarm: generate text, or see who serves what.",
)

Model = Annotated[
    str | None,
    typer.Argument(
        help="A folder, a GGUF file or a Hugging Face name. Default: SmolLM2-135M-Instruct.",
        show_default=False,
    ),
]
Peers = Annotated[
    list[str],
    typer.Option(
        help="Addresses of any members of the swarm, as a server prints them.", metavar="ADDR..."
    ),
]


@app.command()
def generate(
    peers: Peers,
    prompt: Annotated[
        str, typer.Option(help="The text to continue; - reads it from standard input.")
    ],
    model: Model = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of the answer.")] = 64,
    temperature: Annotated[
        float | None,
        typer.Option(min=0.0, help="Sample, with this temperature; 0: do not.", show_default=False),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(min=1, help="Sample among the best k tokens.", show_default=False),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, help="Sample among the best p of the mass.", show_default=False
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Makes sampling repeatable.", show_default=False)
    ] = None,
    num_beams: Annotated[
        int, typer.Option(min=1, help="Beam search; the text is printed when it is done.")
    ] = 1,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="End before this text; may be given several times.", show_default=False),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="auto, float32, bfloat16 or float16. auto: float32 on a CPU.")
    ] = "auto",
    revision: Annotated[
        str | None,
        typer.Option(help="Branch, tag or commit of a Hugging Face name.", show_default=False),
    ] = None,
    mix_numerics: Annotated[
        bool,
        typer.Option(
            "--mix-numerics",
            help="Allow a route of servers that compute differently (dtype, quantisation).",
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object in place of the streamed text.")
    ] = False,
) -> None:
    """Continue a text. Greedy, unless an option asks for sampling or beams.

    The text goes to standard output; the route, the speed and errors to standard error.
    """

    def command() -> None:
        from swarm.cli.generating import Request, generate_text

        interrupt_on_sigterm()
        generate_text(
            Request(
                model=model,
                peers=split_addresses(peers),
                prompt=prompt,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                seed=seed,
                num_beams=num_beams,
                stop=tuple(stop or ()),
                dtype=dtype,
                revision=revision,
                mix_numerics=mix_numerics,
                as_json=as_json,
            )
        )

    run(command)


@app.command()
def status(
    peers: Peers,
    model: Annotated[
        str | None,
        typer.Argument(
            help="A model's name as its servers give it, or what `generate` takes. Default: the"
            " one with most servers.",
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds that a server gets to answer.")
    ] = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, no table.")] = False,
) -> None:
    """Show who serves which blocks of a model, how fast, and what is free."""

    def command() -> None:
        from swarm.cli.status import show_status

        interrupt_on_sigterm()
        show_status(split_addresses(peers), model, timeout, as_json)

    run(command)


def main() -> None:
    arguments = repeat_address_options(sys.argv[1:])
    run_program(app, "swarm-client", arguments or ["--help"])
