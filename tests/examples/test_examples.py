"""The programs in `examples/`, run as they are, over tiny models."""

import asyncio
import io
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_chat import tokenizer

from swarm import AutoModelForCausalLM
from swarm.testing import LocalSwarm

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 60.0


Example = Callable[..., str]


@pytest.fixture
def example(
    chat_folder: Path,
    chat_swarm: LocalSwarm,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Example:
    """`example(name, lines of standard input)`: what it prints."""

    def example(name: str, *lines: str) -> str:
        monkeypatch.setattr("sys.argv", [name, chat_swarm.address, str(chat_folder)])
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        chat_swarm.wait_until_free()
        return capsys.readouterr().out

    return example


def continued(chat_plain: Any, ids: list[int]) -> list[int]:
    output = chat_plain.generate(
        torch.tensor([ids]), max_new_tokens=40, do_sample=False, pad_token_id=0
    )
    found: list[int] = output[0, len(ids) :].tolist()
    return found


def test_generate(example: Example, chat_plain: Any) -> None:
    out = example("generate.py")
    prompt = "The history of the printing press begins in the city of Mainz, where"
    ids = tokenizer()(prompt).input_ids
    assert out.startswith(prompt)
    assert tokenizer().decode(continued(chat_plain, ids)) in out
    assert "route: 0:1 on 12D3" in out and "1:2 on 12D3" in out


def test_chat(example: Example, chat_plain: Any) -> None:
    out = example("chat.py", "Hello", "and more")
    made, messages = tokenizer(), []
    for question in ("Hello", "and more"):
        messages.append({"role": "user", "content": question})
        ids = made.apply_chat_template(messages, add_generation_prompt=True).input_ids
        text = made.decode(continued(chat_plain, ids), skip_special_tokens=True)
        messages.append({"role": "assistant", "content": text})
        assert f"{text}\n({len(ids) + 39} tokens held)" in out


def test_score(example: Example, chat_plain: Any) -> None:
    texts = ["a text", "another one that is longer", "ab", *(f"number {n}" for n in range(9))]
    found = [line.split("\t") for line in example("score.py", *texts).splitlines()]
    assert [text for _, text in found] == texts
    for perplexity, text in found:
        ids = torch.tensor([tokenizer()(text).input_ids])
        with torch.no_grad():
            expected = float(chat_plain(ids, labels=ids).loss.exp()) if ids.shape[1] > 1 else None
        assert (
            (perplexity == "nan")
            if expected is None
            else float(perplexity) == pytest.approx(expected, rel=1e-3, abs=0.01)
        )


def test_serve(
    chat_folder: Path,
    chat_plain: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Over the real network; Ctrl-C is a cancelled main, as `asyncio.run` makes of it."""
    main = runpy.run_path(str(ROOT / "examples" / "serve.py"))["main"]
    said = ""

    async def serve() -> None:
        nonlocal said
        serving = asyncio.create_task(main("0:2", None, str(chat_folder)))
        try:
            async with asyncio.timeout(DEADLINE_S):
                while "online with blocks 0:2" not in said:
                    assert not serving.done(), serving.exception()
                    said += capsys.readouterr().out
                    await asyncio.sleep(0.05)
            address = next(word for word in said.split() if word.startswith("/ip4/"))
            await asyncio.to_thread(use, address)
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
        assert serving.cancelled()

    def use(address: str) -> None:
        model = AutoModelForCausalLM.from_pretrained(chat_folder, initial_peers=[address])
        ids = tokenizer()("Hello").input_ids
        output = model.generate(torch.tensor([ids]), max_new_tokens=40, do_sample=False)
        assert output[0, len(ids) :].tolist() == continued(chat_plain, ids)
        model.close()

    asyncio.run(serve())
    assert capsys.readouterr().out.splitlines()[-1] == "stopped"
