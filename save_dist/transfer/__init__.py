"""Real cells under another condition."""
