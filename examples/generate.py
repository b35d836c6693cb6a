"""Continue a text over a swarm, as with any model of transformers.

python examples/generate.py ADDRESS [MODEL]
"""

import sys

from transformers import TextStreamer

from swarm import AutoModelForCausalLM, AutoTokenizer

PROMPT = "The history of the printing press begins in the city of Mainz, where"


def main(address: str, name: str | None = None) -> None:
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForCausalLM.from_pretrained(name, initial_peers=[address])
    inputs = tokenizer(PROMPT, return_tensors="pt")
    model.generate(**inputs, max_new_tokens=40, do_sample=False, streamer=TextStreamer(tokenizer))
    print("route:", ", ".join(f"{hop.start}:{hop.end} on {hop.peer}" for hop in model.route))
    model.close()


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
