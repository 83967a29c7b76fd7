"""Tables and figures from finished runs: reads `result.json` files and nothing else."""
