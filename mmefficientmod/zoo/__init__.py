"""The backbones that are compared, the tasks they are compared in, and what is published about them; no torch."""
