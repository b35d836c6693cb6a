"""What `swarm-client generate --prompt` does once its options are read."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import typer

from swarm.cli.answering import Answering, Sampling
from swarm.cli.connecting import Connection
from swarm.cli.terminal import checked_text, say, say_prefill, write
from swarm.errors import UsageError
from swarm.sessions.messages import Hop


@dataclass(frozen=True)
class Request:
    """One prompt, and how its answer is shown."""

    connection: Connection
    sampling: Sampling
    prompt: str
    """`-`: what standard input says."""
    as_json: bool = False


def generate_text(request: Request) -> None:
    """Print the text as it comes, or one JSON object."""
    prompt = _standard_input() if request.prompt == "-" else request.prompt
    checked_text(prompt, "the prompt")
    if not prompt:
        raise UsageError("the prompt is empty; give --prompt TEXT, or - and text on standard input")
    checkpoint = request.connection.open()
    tokenizer = checkpoint.load_tokenizer()
    with request.connection.joined(say_prefill) as model:
        _generate(request, prompt, model, tokenizer)


def _standard_input() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8 text: {error}") from None


def _generate(request: Request, prompt: str, model: Any, tokenizer: Any) -> None:
    ids = tokenizer(prompt).input_ids
    if not ids:
        raise UsageError("the prompt has no tokens; write something that the model can continue")
    streams = request.sampling.num_beams == 1 and not request.as_json
    answering = Answering(model, tokenizer, request.sampling, on_text=write if streams else None)
    with request.sampling.random():
        answer = answering.run(ids)
    if request.as_json:
        found = {
            "text": answer.text,
            "token_ids": answer.ids,
            "ttft_s": round(answer.first_s, 4),
            "tokens_per_s": round(answer.tokens_per_s, 3),
            "route": [
                {"peer": hop.peer, "blocks": f"{hop.start}:{hop.end}"} for hop in model.route
            ],
        }
        typer.echo(json.dumps(found))
        return
    write("\n" if streams else answer.text + "\n")
    say(f"route: {route_in_words(model.route)}")
    say(
        f"{len(answer.ids)} tokens, {answer.tokens_per_s:.2f} tokens/s, "
        f"first token after {answer.first_s:.2f} s"
    )


def route_in_words(hops: Sequence[Hop]) -> str:
    """Who computes which blocks."""
    return " -> ".join(f"{hop.start}:{hop.end} on {hop.peer}" for hop in hops)
