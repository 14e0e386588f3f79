#!/bin/sh
# MLflow with basic auth. Passwords come from secret files and stay out of arguments and images.
set -eu

secret() { cat "/run/secrets/$1"; }

database="postgresql+psycopg2://mlflow:$(secret postgres_password)@postgres:5432"
umask 077
cat >/tmp/basic_auth.ini <<INI
[mlflow]
default_permission = READ
database_uri = ${database}/mlflow_auth
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
grant_default_workspace_access = false
INI
export MLFLOW_AUTH_CONFIG_PATH=/tmp/basic_auth.ini
MLFLOW_AUTH_ADMIN_PASSWORD="$(secret mlflow_admin_password)"
MLFLOW_FLASK_SERVER_SECRET_KEY="$(secret mlflow_server_key)"
MLFLOW_BACKEND_STORE_URI="${database}/mlflow"
export MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY MLFLOW_BACKEND_STORE_URI

exec mlflow server --app-name basic-auth --host 0.0.0.0 --port 5000 --workers 2 \
  --artifacts-destination /artifacts \
  --allowed-hosts "${MLFLOW_ALLOWED_HOSTS:-127.0.0.1:*,localhost:*}"
