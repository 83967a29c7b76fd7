"""Which parameters a method tunes, and what each is to its model."""
