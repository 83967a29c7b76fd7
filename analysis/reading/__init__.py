"""Files of runs, suites and probes, read strictly: what is missing or at odds is an error."""
