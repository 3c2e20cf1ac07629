"""What the comparison is made of: the published figures, complexity."""
