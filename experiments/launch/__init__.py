"""Where runs are done: worker processes, a sweep on this machine, Slurm."""
