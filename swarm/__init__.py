"""A peer-to-peer volunteer swarm for large language models."""

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swarm.client.model import AutoModelForCausalLM
    from swarm.client.settings import ClientSettings
    from swarm.client.tokenizer import AutoTokenizer
    from swarm.server.config import ServerConfig
    from swarm.server.server import Server

__all__ = ["AutoModelForCausalLM", "AutoTokenizer", "ClientSettings", "Server", "ServerConfig"]

_HOMES = {
    "AutoModelForCausalLM": "swarm.client.model",
    "AutoTokenizer": "swarm.client.tokenizer",
    "ClientSettings": "swarm.client.settings",
    "Server": "swarm.server.server",
    "ServerConfig": "swarm.server.config",
}


def _tells_users_something(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(
        ("Failed to load ", "Warning: Detected no triton", "%s is an Enum subclass")
    )


# Wherever torchao is installed transformers imports it, used or not, and that tells on standard
# error of kernels for other machines and of torch's plans. Here, so that it holds as soon as any
# part of this package has been imported.
for _name in ("torchao", "torchao.kernel.intmm", "torch.utils._pytree"):
    logging.getLogger(_name).addFilter(_tells_users_something)


def __getattr__(name: str) -> Any:
    # Importing torch and transformers takes seconds; `import swarm` alone needs neither.
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
