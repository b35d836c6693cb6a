"""`swarm-client generate --prompts` over a swarm in memory."""

import json
import os
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_chat import tokenizer
from transformers import set_seed

from swarm.cli import batch
from swarm.cli.answering import Answering, Sampling
from swarm.cli.batch_files import Prompt, ResultFile, read_prompts
from swarm.errors import SessionLostError, UsageError
from swarm.testing import LocalSwarm

TEXTS = ["Hello", "the second one", "ab", "a fourth", "5", "the last of six"]
TOKENS = 8


RunClient = Callable[[Sequence[str]], tuple[int, str, str]]
Generate = Callable[..., tuple[int, str, str]]


@pytest.fixture
def generate(chat_folder: Path, chat_swarm: LocalSwarm, run_client: RunClient) -> Generate:
    """`generate(*options)`: exit code, standard output and standard error of the command."""

    def generate(*options: str | Path) -> tuple[int, str, str]:
        arguments = ["generate", str(chat_folder), "--peers", chat_swarm.address]
        if "--max-new-tokens" not in options:
            arguments += ["--max-new-tokens", str(TOKENS)]
        return run_client([*arguments, *map(str, options)])

    return generate


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(TEXTS) + "\n\n")
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def expected_ids(chat_plain: Any, text: str, tokens: int = TOKENS, **options: Any) -> list[int]:
    ids = torch.tensor([tokenizer()(text).input_ids])
    options = {"do_sample": False, **options}
    found: list[int] = chat_plain.generate(ids, max_new_tokens=tokens, pad_token_id=0, **options)[
        0, ids.shape[1] :
    ].tolist()
    return found


def errors_of(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("error: ")]


def test_all_prompts_are_answered_in_order(
    generate: Generate, prompts: Path, tmp_path: Path, chat_plain: Any, chat_swarm: LocalSwarm
) -> None:
    output = tmp_path / "answers.jsonl"
    code, out, err = generate("--prompts", prompts, "--output", output, "--concurrency", "3")
    assert (code, out) == (0, "")
    assert "6 of 6" in err
    found = lines(output)
    assert [line["index"] for line in found] == list(range(6))
    for line, text in zip(found, TEXTS, strict=True):
        assert line["token_ids"] == expected_ids(chat_plain, text)
        assert line["text"] == tokenizer().decode(line["token_ids"], skip_special_tokens=True)
        assert line["error"] is None
        assert line["ttft_s"] > 0
    chat_swarm.wait_until_free()


def test_samples_are_those_of_single_runs(
    generate: Generate, tmp_path: Path, chat_plain: Any
) -> None:
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    options: list[dict[str, Any]] = [{}, {"seed": 9}, {"temperature": 0}, {"num_beams": 3}]
    prompts.write_text(
        "".join(
            json.dumps({"prompt": "Hello", "id": f"n{n}", **o}) + "\n"
            for n, o in enumerate(options)
        )
    )
    sampling = ("--temperature", "1.3", "--top-k", "40", "--seed", "5")
    code, _, err = generate("--prompts", prompts, "--output", output, *sampling)
    assert code == 0, err
    found = lines(output)
    assert [line["id"] for line in found] == ["n0", "n1", "n2", "n3"]
    for line, seed in zip(found[:2], (5, 9), strict=True):
        single = json.loads(
            generate("--prompt", "Hello", "--json", *sampling[:4], "--seed", seed)[1]
        )
        assert line["token_ids"] == single["token_ids"]
        set_seed(seed)
        sample = {"do_sample": True, "temperature": 1.3, "top_k": 40}
        assert line["token_ids"] == expected_ids(chat_plain, "Hello", **sample)
    assert found[0]["token_ids"] != found[1]["token_ids"]
    assert found[2]["token_ids"] == expected_ids(chat_plain, "Hello")


def test_it_goes_on_where_it_stopped(
    generate: Generate, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "answers.jsonl"
    asked: list[tuple[int, ...]] = []

    def run(
        self: Answering, ids: Any, session: Any = None, *, original: Any = Answering.run
    ) -> Any:
        asked.append(tuple(ids))
        return original(self, ids, session)

    monkeypatch.setattr(Answering, "run", run)
    assert generate("--prompts", prompts, "--output", output)[0] == 0
    whole = lines(output)
    # As if it had been ended while it wrote the third line.
    third = output.read_text().splitlines(keepends=True)[:3]
    output.write_text("".join(third)[:-20])
    asked.clear()
    code, _, err = generate("--prompts", prompts, "--output", output)
    assert code == 0
    assert "2 of 6 have answers already" in err
    wanted = {tuple(tokenizer()(text).input_ids) for text in TEXTS[2:]}
    assert set(asked) == wanted and len(asked) == 4
    assert [{**line, "ttft_s": 0, "tokens_per_s": 0} for line in lines(output)] == [
        {**line, "ttft_s": 0, "tokens_per_s": 0} for line in whole
    ]
    asked.clear()
    assert generate("--prompts", prompts, "--output", output)[0] == 0
    assert asked == []


def test_more_prompts_may_be_added_but_none_changed(
    generate: Generate, prompts: Path, tmp_path: Path
) -> None:
    output = tmp_path / "answers.jsonl"
    assert generate("--prompts", prompts, "--output", output)[0] == 0
    before = output.read_bytes()
    changes = {
        "prompts": ([*TEXTS[:2], "changed", *TEXTS[3:]], ()),
        "fewer": (TEXTS[:2], ()),
        "options": (TEXTS, ("--top-k", "3")),
    }
    for texts, options in changes.values():
        prompts.write_text("\n".join(texts))
        code, _, err = generate("--prompts", prompts, "--output", output, *options)
        assert code == 2
        assert len(errors_of(err)) == 1 and "other prompts" in err
        assert output.read_bytes() == before
    prompts.write_text("\n".join([*TEXTS, "one more"]))
    assert generate("--prompts", prompts, "--output", output)[0] == 0
    assert len(lines(output)) == 7


def test_one_failed_prompt_does_not_lose_the_rest(
    generate: Generate, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "answers.jsonl"
    original, broken = Answering.run, tokenizer()(TEXTS[1]).input_ids

    def run(self: Answering, ids: Any, session: Any = None) -> Any:
        if list(ids) == broken:
            raise SessionLostError("the server of 1:2 is gone; try again")
        return original(self, ids, session)

    monkeypatch.setattr(Answering, "run", run)
    code, _, err = generate("--prompts", prompts, "--output", output)
    assert code == 1
    assert "5 of 6" in err
    assert "prompt 1: SessionLostError: the server of 1:2 is gone" in err
    found = lines(output)
    assert [line["error"] is None for line in found] == [True, False, True, True, True, True]
    assert found[1]["error"] == {
        "type": "SessionLostError",
        "message": "the server of 1:2 is gone; try again",
    }
    assert found[1]["text"] is None
    # It is asked again, and its error is gone.
    monkeypatch.setattr(Answering, "run", original)
    assert generate("--prompts", prompts, "--output", output)[0] == 0
    assert all(line["error"] is None for line in lines(output))
    assert len(lines(output)) == 6


def test_a_swarm_that_is_gone_ends_the_batch(
    generate: Generate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, output = tmp_path / "prompts.txt", tmp_path / "answers.jsonl"
    prompts.write_text("\n".join(f"prompt {number}" for number in range(100)))
    asked = []

    def run(self: Answering, ids: Any, session: Any = None) -> Any:
        asked.append(ids)
        raise SessionLostError("gone")

    monkeypatch.setattr(Answering, "run", run)
    code, _, err = generate("--prompts", prompts, "--output", output, "--concurrency", "2")
    assert code == 1
    assert "6 failures in a row" in err
    assert "0 of 100" in err and "run the same command again" in err


def test_ctrl_c_leaves_a_file_to_go_on_with(
    generate: Generate,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chat_swarm: LocalSwarm,
) -> None:
    output = tmp_path / "answers.jsonl"
    original = batch.ResultFile.add

    def add(self: batch.ResultFile, result: Any) -> None:
        original(self, result)
        if len(self.done) == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(batch.ResultFile, "add", add)
    code, _, err = generate("--prompts", prompts, "--output", output, "--concurrency", "2")
    assert code == 130
    assert "2 of 6" in err and "Traceback" not in err
    assert len(lines(output)) == 2
    assert not [one for one in threading.enumerate() if one.name.startswith("prompt")]
    chat_swarm.wait_until_free()
    monkeypatch.setattr(batch.ResultFile, "add", original)
    code, _, err = generate("--prompts", prompts, "--output", output)
    assert code == 0
    assert "2 of 6 have answers already" in err
    assert [line["index"] for line in lines(output)] == list(range(6))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["no prompts"]),
        ('{"prompt": "a"}\n{"prompt": 5}\n', ["line 2", "$.prompt"]),
        ('{"prompt": "a", "max_tokens": 5}\n', ["line 1", "max_tokens", "max_new_tokens"]),
        ('{"prompt": "a", "max_new_tokens": 0}\n', ["line 1", "max_new_tokens"]),
        ('{"prompt": "a"}\nnonsense\n', ["line 2"]),
    ],
    ids=["empty", "type", "name", "value", "text"],
)
def test_files_that_are_no_prompts(
    generate: Generate, tmp_path: Path, content: str, words: list[str]
) -> None:
    prompts, output = tmp_path / "prompts", tmp_path / "answers"
    prompts.write_text(content)
    code, _, err = generate("--prompts", prompts, "--output", output)
    assert code == 2
    [error] = errors_of(err)
    assert all(word in error for word in words)
    assert not output.exists()


@pytest.mark.parametrize("content", ['{"prompt": "mine"}\n', "my notes", '{"prompt": "mine"}'])
def test_a_file_of_others_is_not_written_over(
    generate: Generate, prompts: Path, tmp_path: Path, content: str
) -> None:
    output = tmp_path / "notes"
    output.write_text(content)
    code, _, err = generate("--prompts", prompts, "--output", output)
    assert code == 2
    assert "not an output of this command" in err
    assert output.read_text() == content


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--prompts", "p"),
        ("--prompts", "p", "--output", "o", "--prompt", "Hi"),
        ("--prompt", "Hi", "--output", "o"),
        ("--prompts", "nowhere", "--output", "o"),
    ],
)
def test_options_that_do_not_go_together(generate: Generate, options: tuple[str, ...]) -> None:
    code, _, err = generate(*options)
    assert code == 2
    assert len(errors_of(err)) == 1


def test_lines_of_text_end_with_line_ends_only(tmp_path: Path) -> None:
    path = tmp_path / "prompts"
    path.write_bytes("\ufeffone\u2028line\r\n\n  two\n".encode())
    assert read_prompts(path) == [Prompt("one\u2028line"), Prompt("  two")]
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="UTF-8"):
        read_prompts(path)


def test_options_of_a_prompt_replace_those_of_the_command() -> None:
    defaults = Sampling(max_new_tokens=5, temperature=0.5, stop=("x",))
    own = Prompt("p", max_new_tokens=7, stop=["y", "z"]).sampling(defaults)
    assert own == Sampling(max_new_tokens=7, temperature=0.5, stop=("y", "z"))


def test_two_runs_do_not_write_one_file(generate: Generate, prompts: Path, tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    first = ResultFile(output, [])
    try:
        code, _, err = generate("--prompts", prompts, "--output", output)
        assert code == 2
        (line,) = errors_of(err)
        assert "is being written by another run" in line and str(output) in line
        assert output.read_bytes() == b""
    finally:
        first.close()
    assert generate("--prompts", prompts, "--output", output)[0] == 0
    assert len(lines(output)) == len(TEXTS)
    assert {path.name for path in tmp_path.iterdir()} == {prompts.name, output.name}


def test_a_link_to_the_output_is_followed(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    real, link = tmp_path / "far" / "answers.jsonl", tmp_path / "answers.jsonl"
    link.symlink_to(real)
    for _ in range(2):  # where it leads to nothing yet, and then to a file
        results = ResultFile(link, [])
        with pytest.raises(UsageError, match="another run"):
            ResultFile(real, [])
        results.finish()
        assert link.is_symlink() and real.is_file() and not real.is_symlink()
    assert [path.name for path in real.parent.iterdir()] == [real.name]


def test_an_output_that_is_no_file_stays_what_it_is(tmp_path: Path) -> None:
    pipe, link, circle = tmp_path / "pipe", tmp_path / "link", tmp_path / "circle"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    circle.symlink_to(circle)
    for path in (pipe, link, circle, tmp_path, Path(os.devnull)):
        with pytest.raises(UsageError, match=rf"--output {path} ") as caught:
            ResultFile(path, [])
        assert "\n" not in str(caught.value)
    assert pipe.is_fifo() and link.is_symlink() and circle.is_symlink()
    assert Path(os.devnull).is_char_device()
    assert len(list(tmp_path.iterdir())) == 3
