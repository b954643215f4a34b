"""What clients see: the listening side, its routes, who may call and how much."""
