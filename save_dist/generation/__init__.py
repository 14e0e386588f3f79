"""A declared grid -> parts -> sampled cells."""
