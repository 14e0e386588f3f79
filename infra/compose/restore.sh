#!/bin/sh
# A folder written by backup.sh -> the running, empty or older, services. Replaces what is there.
set -eu
source_folder="$(cd "${1:?usage: restore.sh BACKUP_FOLDER}" && pwd)"
cd "$(dirname "$0")"
(cd "$source_folder" && sha256sum --check --quiet SHA256SUMS)
docker compose stop mlflow
for database in mlflow mlflow_auth; do
  docker compose exec -T postgres pg_restore --username mlflow --dbname "$database" \
    --clean --if-exists --no-owner --single-transaction <"$source_folder/$database.dump"
done
docker compose start mlflow
docker compose exec -T mlflow tar -C /artifacts -xf - <"$source_folder/artifacts.tar"
