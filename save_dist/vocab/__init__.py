"""What a number means: gene order, condition codes, gene vectors, gene blocks."""
