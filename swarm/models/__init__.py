"""What a block is: slices of any transformers decoder, and the files that hold their tensors."""

import logging

# transformers imports torchao where it is installed, whether it is used or not, and that tells on
# standard error of kernels for other machines and of torch's plans.
for _name in ("torch.utils._pytree", "torchao"):
    logging.getLogger(_name).setLevel(logging.ERROR)
