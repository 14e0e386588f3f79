"""Foundations every layer stands on: errors, seeds, durable files. Imports nothing of save_dist."""
