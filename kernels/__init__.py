"""The operations and their back ends: plain torch as the oracle, C++ for CPUs, FlashInfer on CUDA."""
