#!/bin/sh
# Both MLflow databases and all artifacts -> one folder named by the time, in $1. Runs while the
# server does: a dump is one transaction, and artifacts are only ever added.
set -eu
cd "$(dirname "$0")"
target="${1:?usage: backup.sh FOLDER}/$(date -u +%Y%m%dT%H%M%SZ)"
umask 077
mkdir -p "$target"
for database in mlflow mlflow_auth; do
  docker compose exec -T postgres pg_dump --username mlflow --format custom "$database" \
    >"$target/$database.dump"
done
docker compose exec -T mlflow tar -C /artifacts -cf - . >"$target/artifacts.tar"
(cd "$target" && sha256sum ./* >SHA256SUMS)
echo "$target"
