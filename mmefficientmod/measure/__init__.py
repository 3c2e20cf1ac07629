"""The cost of a network: time, memory, parameters, multiply-accumulates."""
