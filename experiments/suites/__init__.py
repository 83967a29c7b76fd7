"""What a table needs, and how it stands."""
