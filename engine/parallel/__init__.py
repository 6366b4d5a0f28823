"""One replica over several processes: tensor parallelism within a layer, pipeline parallelism between layers."""
