"""One training loop for both stages; sees the cluster only through `Reporter`."""
