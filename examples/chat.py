"""Talk with a model over a swarm; each line of the input is a message.

python examples/chat.py ADDRESS [MODEL]

A session keeps what the servers have computed: a turn sends only the tokens that are new. The
command `swarm-client chat` does the same with more comfort.
"""

import sys

from swarm import AutoModelForCausalLM, AutoTokenizer


def main(address: str, name: str | None = None) -> None:
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForCausalLM.from_pretrained(name, initial_peers=[address])
    messages: list[dict[str, str]] = []
    with model.session(max_length=512) as session:
        for line in sys.stdin:
            messages.append({"role": "user", "content": line.strip()})
            inputs = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            output = model.generate(**inputs, max_new_tokens=40, do_sample=False)
            answer = output[0, inputs["input_ids"].shape[1] :]
            text = tokenizer.decode(answer, skip_special_tokens=True)
            messages.append({"role": "assistant", "content": text})
            print(text, f"({session.position} tokens held)", sep="\n")
    model.close()


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
