"""How many threads compute: set before torch does any work."""

import os

_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def limit_threads(threads: int) -> None:
    """Every pool of this process gets `threads`: three pools that spin on the same cores slow each
    other down. Takes full effect only if torch was not imported before."""
    for variable in _VARIABLES:
        os.environ[variable] = str(threads)
    import torch

    torch.set_num_threads(threads)
