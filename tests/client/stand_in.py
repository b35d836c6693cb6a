"""A swarm without a network: the plain model's own layers behind the client's interfaces."""

import copy

import torch
from torch import nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from swarm.client.chain import ChainStep
from swarm.client.generation import Remote, attach
from swarm.client.swarm_blocks import SwarmBlocks
from swarm.errors import CacheFullError, SessionClosedError
from swarm.models.remote_blocks import ATTENTION, RemoteBlocks
from swarm.sessions.messages import Hop

IDS = torch.tensor([[17, 4, 99, 150, 4, 99, 150, 4, 99]])
PADDED = torch.tensor([[0, 0, 0, 5, 6, 7], [0, 9, 8, 7, 6, 5], [11, 12, 13, 14, 15, 16]])


def tiny_llama(seed: int = 0, **changes):
    """A plain model whose random weights are large enough that its ids vary."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        **{
            "vocab_size": 211,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "initializer_range": 0.3,
        }
        | changes
    )
    return LlamaForCausalLM(config).eval()


class LocalServers:
    """Counts what is open, as a server would."""

    def __init__(self, plain):
        self.blocks = copy.deepcopy(plain.model)
        self.blocks.norm = nn.Identity()
        self.open = {}
        self.opened = []
        self.steps = []
        self.room = None
        """Slots in all; None: as many as are asked for."""

    def open_chain(self, rows, length, least):
        if self.room is not None and rows * length > self.room - self.reserved:
            length = least
        if self.room is not None and rows * length > self.room - self.reserved:
            raise CacheFullError("full")
        chain = LocalChain(self, rows, length)
        self.open[id(chain.state)] = rows * length
        self.opened.append((rows, length))
        return chain

    @property
    def reserved(self):
        return sum(self.open.values())


class LocalChain:
    route = (Hop("QmLocalServer1", 0, 3),)

    def __init__(self, servers, rows, length):
        self.servers, self.max_rows, self.length = servers, rows, length
        self.state = object()
        self.rows = None

    @property
    def is_over(self):
        return id(self.state) not in self.servers.open

    def step(self, step: ChainStep):
        if id(self.state) not in self.servers.open:
            raise SessionClosedError("closed")
        self.servers.steps.append(step)
        if self.rows is None:
            assert step.operation is None
            self.rows = [DynamicCache() for _ in step.counts]
        if step.operation is not None:
            assert step.operation.parents is not None or step.operation.truncate_to is not None
            if step.operation.parents is not None:
                self.rows = [copy.deepcopy(self.rows[parent]) for parent in step.operation.parents]
            for row, keep in zip(self.rows, step.operation.truncate_to or (), strict=False):
                row.crop(-(row.get_seq_length() - keep))
        assert len(self.rows) == len(step.counts) <= self.max_rows
        assert step.starts == tuple(row.get_seq_length() for row in self.rows)
        assert step.hidden.shape[0] == sum(step.counts) == len(step.position_ids)
        assert all(s + c <= self.length for s, c in zip(step.starts, step.counts, strict=True))
        answers, offset = [], 0
        for row, count in zip(self.rows, step.counts, strict=True):
            if not count:
                continue
            hidden = step.hidden[offset : offset + count]
            positions = torch.tensor([step.position_ids[offset : offset + count]])
            offset += count
            with torch.no_grad():
                out = self.servers.blocks(
                    inputs_embeds=hidden[None], position_ids=positions, past_key_values=row
                ).last_hidden_state[0]
            answers.append(out[-step.keep :])
        return torch.cat(answers)

    def close(self):
        self.servers.open.pop(id(self.state), None)


def as_remote(plain):
    """The plain model's shell over its own layers: `(model, servers)`."""
    servers = LocalServers(plain)
    shell = copy.deepcopy(plain)
    blocks = RemoteBlocks(plain.model.layers[0])
    blocks.remote = SwarmBlocks()
    shell.model.layers = nn.ModuleList([blocks])
    shell.config._attn_implementation = ATTENTION
    remote = Remote(servers.open_chain, plain.config.num_hidden_layers, lambda: None)
    return attach(shell, remote), servers
