"""`swarm-client chat` over a swarm in memory."""

import io
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_chat import FORGETFUL, save_chat_model, tokenizer

from swarm.cli import chatting
from swarm.cli.conversation import Conversation
from swarm.client.remote_session import RemoteSession
from swarm.errors import SessionLostError, UsageError
from swarm.testing import LocalSwarm

TOKENS = 12


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens went to the servers with each step."""
    counts: list[int] = []

    def step(self: RemoteSession, step: Any, *, original: Any = RemoteSession.step) -> Any:
        counts.append(sum(step.counts))
        return original(self, step)

    monkeypatch.setattr(RemoteSession, "step", step)
    return counts


RunClient = Callable[[Sequence[str]], tuple[int, str, str]]
Talk = Callable[..., tuple[int, str, str]]


@pytest.fixture
def talk(
    chat_folder: Path,
    chat_swarm: LocalSwarm,
    monkeypatch: pytest.MonkeyPatch,
    run_client: RunClient,
) -> Talk:
    """`talk(lines, *options)`: exit code, standard output and standard error of the command."""

    def talk(lines: list[str], *options: str, model: Path = chat_folder) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        arguments = ["chat", str(model), "--peers", chat_swarm.address, *options]
        if "--max-new-tokens" not in options:
            arguments += ["--max-new-tokens", str(TOKENS)]
        return run_client(arguments)

    return talk


class Reference:
    """The same conversation with the whole model, computed anew for each turn."""

    def __init__(self, chat_plain: Any, system: str | None = None) -> None:
        self._plain = chat_plain
        self._tokenizer = tokenizer()
        self._conversation = Conversation(self._tokenizer, system)

    def answer(self, text: str, tokens: int = TOKENS, cut: int | None = None) -> str:
        ids = self._conversation.ask(text)
        output = self._plain.generate(
            torch.tensor([ids]), max_new_tokens=tokens, do_sample=False, pad_token_id=0
        )
        said = output[0, len(ids) :].tolist()[:cut]
        self._conversation.answered(said)
        return str(self._tokenizer.decode(said, skip_special_tokens=True))


def test_several_turns_give_what_the_whole_model_says(talk: Talk, chat_plain: Any) -> None:
    questions = ["Hello", "and ab then", "more"]
    code, out, _ = talk([*questions, "", "/quit", "never asked"], "--system", "Be brief.")
    assert code == 0
    reference = Reference(chat_plain, "Be brief.")
    assert out == "".join(reference.answer(one) + "\n" for one in questions)


def test_a_turn_sends_only_its_new_tokens(
    talk: Talk, sent: list[int], chat_swarm: LocalSwarm
) -> None:
    code, _, err = talk(["Hello", "second", "third", "/stats"])
    assert code == 0
    prompts = [count for count in sent if count > 1]
    frame = len(tokenizer()("<|start|>user\n<|end|>\n<|start|>assistant\n").input_ids)
    # Of a turn that follows: the last token of the answer before, which was not fed yet, the end
    # and the new line behind it, and the message in its frame.
    between = len(tokenizer()("<|end|>\n").input_ids) + 1
    assert prompts[0] == frame + len("Hello")
    assert prompts[1:] == [between + frame + len(text) for text in ("second", "third")]
    assert "3 turns" in err
    assert f"{prompts[2]} tokens sent, {TOKENS} received" in err
    chat_swarm.wait_until_free()


def test_a_template_that_rewrites_history_is_followed(
    talk: Talk, sent: list[int], chat_plain: Any, tmp_path: Path
) -> None:
    template = tmp_path / "template.jinja"
    template.write_text(FORGETFUL)
    code, out, _ = talk(["Hello", "second"], "--template", str(template))
    assert code == 0
    made = tokenizer(FORGETFUL)
    messages = [{"role": "user", "content": "Hello"}]
    expected = []
    for question in ("second", None):
        ids = made.apply_chat_template(messages, add_generation_prompt=True).input_ids
        output = chat_plain.generate(torch.tensor([ids]), max_new_tokens=TOKENS, do_sample=False)
        expected.append(made.decode(output[0, len(ids) :], skip_special_tokens=True))
        messages += [
            {"role": "assistant", "content": expected[-1]},
            {"role": "user", "content": question},
        ]
    assert out == "".join(text + "\n" for text in expected)
    # What is rolled back ends where the forgotten answer began.
    prompts = [count for count in sent if count > 1]
    assert len(ids) - prompts[0] == prompts[1]


def test_ctrl_c_ends_the_answer_and_not_the_chat(
    talk: Talk, chat_plain: Any, monkeypatch: pytest.MonkeyPatch, sent: list[int]
) -> None:
    written: list[str] = []

    def write(text: str, *, original: Any = chatting.write) -> None:
        written.append(text)
        if len(written) == 3:
            signal.raise_signal(signal.SIGINT)
        original(text)

    monkeypatch.setattr(chatting, "write", write)
    code, out, _ = talk(["Hello", "second"])
    assert code == 0
    reference = Reference(chat_plain)
    # Three tokens of the first answer stay in the conversation, and the session with them.
    expected = reference.answer("Hello", cut=3) + "\n" + reference.answer("second") + "\n"
    assert out == expected
    assert [count > 1 for count in sent[:5]] == [True, False, False, True, False]


def test_a_second_ctrl_c_does_not_wait(
    talk: Talk, chat_plain: Any, monkeypatch: pytest.MonkeyPatch, chat_swarm: LocalSwarm
) -> None:
    written: list[str] = []

    def write(text: str, *, original: Any = chatting.write) -> None:
        written.append(text)
        original(text)
        if len(written) == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(chatting, "write", write)
    code, out, _ = talk(["Hello", "second"])
    assert code == 0
    reference = Reference(chat_plain)
    expected = reference.answer("Hello", cut=3) + "\n" + reference.answer("second") + "\n"
    assert out == expected
    chat_swarm.wait_until_free()


def test_reset_begins_anew(talk: Talk, chat_plain: Any) -> None:
    code, out, err = talk(["Hello", "/reset", "Hello", "/nonsense"])
    assert code == 2
    assert "/help" in err and "/nonsense" in err
    assert out == 2 * (Reference(chat_plain).answer("Hello") + "\n")


def test_a_message_that_begins_with_a_slash(talk: Talk, chat_plain: Any) -> None:
    code, out, _ = talk(["//quit is a word"])
    assert code == 0
    assert out == Reference(chat_plain).answer("/quit is a word") + "\n"


def test_a_seed_repeats_the_whole_chat(talk: Talk) -> None:
    options = ("--temperature", "1.5", "--seed", "7")
    first, second = (talk(["Hello", "second"], *options)[1] for _ in range(2))
    assert first == second
    assert talk(["Hello", "second"], "--temperature", "1.5", "--seed", "8")[1] != first


def test_a_full_context_is_told_with_what_to_do(talk: Talk) -> None:
    code, out, err = talk(["Hello", "second"], "--context-tokens", "32")
    assert code == 1
    told = [line for line in err.splitlines() if "context" in line]
    assert len(told) == 2
    assert all("/reset" in line and "--context-tokens" in line for line in told)
    assert "is full" in told[0]
    assert told[1].startswith("error: ")
    assert len(out.splitlines()) >= 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--context-tokens", "5000"), ["--context-tokens 5000", "512"]),
        (("--template", "nowhere.jinja"), ["nowhere.jinja"]),
    ],
    ids=["context", "template"],
)
def test_mistakes(talk: Talk, options: tuple[str, ...], words: list[str]) -> None:
    code, _, err = talk(["Hello"], *options)
    assert code == 2
    assert all(word in err for word in words)


def test_a_model_without_a_template(talk: Talk, tmp_path: Path) -> None:
    save_chat_model(tmp_path / "base", template=None)
    code, out, err = talk(["Hello"], model=tmp_path / "base")
    assert (code, out) == (2, "")
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "no chat template" in errors[0] and "--template" in errors[0]


def test_a_template_that_refuses() -> None:
    refusing = tokenizer("{{ raise_exception('no system here') }}")
    conversation = Conversation(refusing, "Be brief.")
    with pytest.raises(UsageError, match="no system here; leave out --system"):
        conversation.ask("Hello")


def test_an_answer_that_breaks_off_for_a_person_and_for_a_script(
    chat_folder: Path,
    chat_plain: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A person goes on in another session, as soon as the servers are back."""
    with (
        LocalSwarm(chat_folder, "0:1", "1:2") as swarm,
        swarm.client(missing_timeout_s=0.5, link_grace_s=0.5, repair_timeout_s=1.0) as model,
    ):
        conversation = Conversation(tokenizer())
        sampling = chatting.Sampling(max_new_tokens=TOKENS)
        chat = chatting.Chat(model, tokenizer(), conversation, sampling, 256)
        chat.run(iter(["Hello"]), forgiving=False)
        swarm.kill(swarm.servers[1])
        chat.run(iter(["second"]), forgiving=True)
        swarm.start("1:2")
        chat.run(iter(["second"]), forgiving=False)
        chat.close()
    out, err = capsys.readouterr()
    reference = Reference(chat_plain)
    assert [line for line in out.split("\n") if line] == [
        line
        for text in (reference.answer("Hello"), reference.answer("second"))
        for line in text.split("\n")
        if line
    ]
    assert err.count("error: ") == 1 and "1:2" in err


def test_held_ids_are_kept_although_their_text_has_other_tokens() -> None:
    made = tokenizer()
    conversation = Conversation(made)
    ids = conversation.ask("x")
    letters = [made.convert_tokens_to_ids(letter) for letter in "ab"]
    assert len(made("ab").input_ids) == 1
    conversation.answered([*letters, made.eos_token_id])
    more = conversation.ask("y")
    assert more[: len(ids) + 3] == [*ids, *letters, made.eos_token_id]
    assert (
        made.decode(more)
        == "".join(
            f"<|start|>{role}\n{text}<|end|>\n"
            for role, text in (("user", "x"), ("assistant", "ab"), ("user", "y"))
        )
        + "<|start|>assistant\n"
    )
    assert conversation.shared(more) == len(ids) + 3


def test_lost_sessions_end_a_script(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(*_: Any, **__: Any) -> None:
        raise SessionLostError("the session is gone")

    monkeypatch.setattr(RemoteSession, "step", lose)
    code, _, err = talk(["Hello", "second"])
    assert code == 1
    assert err.count("error: the session is gone") == 1
