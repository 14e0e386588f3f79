"""Metrics, parameters and artifacts of a run: a local journal, mirrored to MLflow."""
