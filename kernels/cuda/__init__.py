"""The operations on NVIDIA GPUs: FlashInfer's kernels, and own ones in Triton where it has none."""
