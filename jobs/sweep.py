"""`ray job submit --working-dir . -- python jobs/sweep.py --config FILE [--set a.b=c ...]`."""

from save_dist.cli import job_main

if __name__ == "__main__":
    job_main("sweep")
