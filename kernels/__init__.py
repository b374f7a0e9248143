"""The hardware code: compiled CPU kernels and, for GPU and TPU, Pallas."""
