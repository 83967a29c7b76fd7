"""The typed configuration of a run, its checks, and how a user's paths and values are read."""
