"""Host blocks of a model from Python, until Ctrl-C.

python examples/serve.py BLOCKS [ADDRESS [MODEL]]

`python examples/serve.py 0:15` begins a swarm of the default model and prints the address that
others join by: `python examples/serve.py 15:30 ADDRESS`.
"""

import asyncio
import contextlib
import sys

from swarm import Server, ServerConfig


async def main(blocks: str, address: str | None = None, model: str | None = None) -> None:
    config = ServerConfig.model_validate(
        {
            "model": model,
            "blocks": blocks,
            "peers": [address] if address else [],
            "listen": ["/ip4/127.0.0.1/tcp/0"],
        }
    )
    async with Server(config, on_event=lambda event: print(event.text, flush=True)) as server:
        await server.failed()  # never returns; raises when the server cannot go on


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 4:
        sys.exit(__doc__)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(*sys.argv[1:]))
