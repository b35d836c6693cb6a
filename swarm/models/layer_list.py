"""Where a model keeps its blocks; client and server find the same list."""

from torch import nn

from swarm.errors import NotServedError


def find_layers(model: nn.Module, count: int) -> tuple[str, nn.ModuleList]:
    """The list of the model's `count` decoder layers, and its name; `NotServedError`.

    Of several lists of that length it is the one that lies least deep (lists within layers, such as
    experts, lie deeper), then the one with most parameters.
    """
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not lists:
        raise NotServedError(
            f"{type(model).__name__} does not keep its {count} blocks in one list, so it cannot be "
            "cut into blocks; it is not served"
        )
    return min(lists, key=lambda each: (each[0].count("."), -_size(each[1])))


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
