"""How it runs: weights, models, KV pools, the runner, sampling, the engine process."""
