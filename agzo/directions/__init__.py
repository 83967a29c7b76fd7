"""What a direction is, and where a method looks for one."""
