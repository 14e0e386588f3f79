"""The only importer of Ray: training workers, sampling actors, job submission."""
