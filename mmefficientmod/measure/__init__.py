"""What a network costs: time, memory, parameters, multiply-accumulates."""
