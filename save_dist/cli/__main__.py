"""`python -m save_dist.cli`, which works where the `save-dist` command is not on the path."""

from save_dist.cli import main

main()
