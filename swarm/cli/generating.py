"""What `swarm-client generate` does once its options are read."""

import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import typer

from swarm.errors import UsageError
from swarm.wire.addresses import split_peer

DTYPE_NAMES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Request:
    """The options of `swarm-client generate`."""

    model: str | None
    peers: tuple[str, ...]
    prompt: str
    max_new_tokens: int
    temperature: float | None
    top_k: int | None
    top_p: float | None
    seed: int | None
    num_beams: int
    stop: tuple[str, ...]
    dtype: str
    revision: str | None
    mix_numerics: bool
    as_json: bool

    def sampling(self) -> dict[str, Any]:
        """For `generate()`: greedy unless something asks for sampling."""
        asked = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        given = {name: value for name, value in asked.items() if value is not None}
        if not given or self.temperature == 0:
            return {"do_sample": False}
        return {"do_sample": True, **given}


def generate_text(request: Request) -> None:
    """Print the text as it comes, or one JSON object."""
    prompt = sys.stdin.read() if request.prompt == "-" else request.prompt
    if not prompt:
        raise UsageError("the prompt is empty; give --prompt TEXT, or - and text on standard input")
    for address in request.peers:
        split_peer(address)
    if request.dtype not in DTYPE_NAMES:
        raise UsageError(f"--dtype {request.dtype}: use one of {', '.join(DTYPE_NAMES)}")
    _quiet_libraries()
    _say("loading the client's part of the model and joining the swarm")

    from swarm import AutoModelForCausalLM, ClientSettings
    from swarm.models.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(request.model, request.revision)
    tokenizer = checkpoint.load_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(
        request.model,
        initial_peers=request.peers,
        dtype=request.dtype,
        revision=request.revision,
        settings=ClientSettings(mix_numerics=request.mix_numerics),
        on_prefill=_say_progress,
    )
    try:
        _generate(request, prompt, model, tokenizer)
    finally:
        model.close()


def _generate(request: Request, prompt: str, model: Any, tokenizer: Any) -> None:
    import transformers

    from swarm.cli.text_stream import TextStream, cut_at_stop

    inputs = tokenizer(prompt, return_tensors="pt")
    length = inputs.input_ids.shape[1]
    if not length:
        raise UsageError("the prompt has no tokens; write something that the model can continue")

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    clock = _Clock()
    stream = TextStream(decode, request.stop)

    class Printer(transformers.generation.streamers.BaseStreamer):  # type: ignore[misc]
        """Gets the prompt first, then each token."""

        def __init__(self) -> None:
            self._prompt_seen = False

        def put(self, value: Any) -> None:
            if not self._prompt_seen:
                self._prompt_seen = True
                return
            _write(stream.put(value.reshape(-1).tolist()))

        def end(self) -> None:
            _write(stream.end() + "\n")

    # A token has at least one byte, so that many tokens hold every stop text that just ended.
    tail = max((len(stop.encode()) for stop in request.stop), default=0) + 8

    def stop_or_go_on(input_ids: Any, scores: Any, **_: Any) -> Any:
        clock.token()
        ends = input_ids[:, length:][:, -tail:] if request.stop else ()
        stops = [cut_at_stop(decode(row), request.stop)[1] for row in ends]
        return input_ids.new_tensor(stops or [False] * len(input_ids)).bool()

    if request.seed is not None:
        transformers.set_seed(request.seed)
    end_of_text = model.generation_config.eos_token_id
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = end_of_text[0] if isinstance(end_of_text, list) else end_of_text
    streams = request.num_beams == 1 and not request.as_json
    output = model.generate(
        **inputs,
        max_new_tokens=request.max_new_tokens,
        num_beams=request.num_beams,
        pad_token_id=pad,
        streamer=Printer() if streams else None,
        stopping_criteria=transformers.StoppingCriteriaList([stop_or_go_on]),
        **request.sampling(),
    )
    clock.end()
    ids = output[0, length:].tolist()
    text = cut_at_stop(decode(ids), request.stop)[0]
    route = [{"peer": hop.peer, "blocks": f"{hop.start}:{hop.end}"} for hop in model.route]
    if request.as_json:
        answer = {
            "text": text,
            "token_ids": ids,
            "ttft_s": round(clock.first_s, 4),
            "tokens_per_s": round(clock.tokens_per_s(len(ids)), 3),
            "route": route,
        }
        typer.echo(json.dumps(answer))
        return
    if not streams:
        _write(text + "\n")
    _say("route: " + " -> ".join(f"{hop['blocks']} on {hop['peer']}" for hop in route))
    _say(
        f"{len(ids)} tokens, {clock.tokens_per_s(len(ids)):.2f} tokens/s, "
        f"first token after {clock.first_s:.2f} s"
    )


class _Clock:
    """When the first and the last token came, in seconds after the beginning."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self.first_s = 0.0
        self._last_s = 0.0

    def token(self) -> None:
        self._last_s = time.perf_counter() - self._began
        self.first_s = self.first_s or self._last_s

    def end(self) -> None:
        if not self.first_s:
            self.token()

    def tokens_per_s(self, tokens: int) -> float:
        """After the first token; of a single one, with the prompt."""
        if tokens > 1 and self._last_s > self.first_s:
            return (tokens - 1) / (self._last_s - self.first_s)
        return tokens / self.first_s if self.first_s else 0.0


def _write(text: str) -> None:
    typer.echo(text, nl=False)
    sys.stdout.flush()


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _say_progress(done: int, total: int) -> None:
    """On a terminal one line that changes, else a line for each piece."""
    text = f"prompt: {done} of {total} tokens"
    if not sys.stderr.isatty():
        _say(text)
    else:
        typer.echo(f"\r{text}" + ("\r\x1b[K" if done == total else ""), err=True, nl=False)


def _quiet_libraries() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
