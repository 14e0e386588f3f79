"""Cells on their way in: files -> SOMA store -> shuffled minibatches."""
