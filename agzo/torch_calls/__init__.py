"""What a model does, seen call by call: uses, products, inputs, and what stands around a step."""
