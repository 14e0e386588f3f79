"""What an MLflow database holds, in plain values."""


class Server:
    """One database and the client that asks it."""

    def __init__(self, uri):
        self.uri = uri

    @property
    def client(self):
        import mlflow

        return mlflow.MlflowClient(tracking_uri=self.uri)

    def runs(self, experiment="test"):
        found = self.client.get_experiment_by_name(experiment)
        return self.client.search_runs([found.experiment_id], order_by=["start_time ASC"])

    def run(self, stage, experiment="test"):
        (run,) = [r for r in self.runs(experiment) if r.data.tags["stage"] == stage]
        return run

    def history(self, stage, key, experiment="test"):
        points = self.client.get_metric_history(self.run(stage, experiment).info.run_id, key)
        return sorted((point.step, point.value) for point in points)

    def files(self, stage, folder=None):
        listed = self.client.list_artifacts(self.run(stage).info.run_id, folder)
        return sorted(item.path for item in listed)
