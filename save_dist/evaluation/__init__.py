"""The evaluation protocol: metrics, floors, baselines, report."""
