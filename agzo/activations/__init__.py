"""What enters a linear layer, and the basis of it: Algorithm 1 and where it is applied."""
