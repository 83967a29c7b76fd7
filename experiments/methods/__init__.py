"""The methods that a run can name."""
