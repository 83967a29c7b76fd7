"""Tables and figures: reads what runs, suites, probes and benchmarks wrote, and nothing else."""
