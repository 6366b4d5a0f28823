"""C++ kernels for CPUs, compiled on first use by the system compiler."""
