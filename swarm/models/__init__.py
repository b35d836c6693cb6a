"""What a block is: slices of any transformers decoder, and the files that hold their tensors."""
