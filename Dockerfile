# One image for Airflow, MLflow and every stage: the environment of requirements.lock, the code, Java and the Spark jars.
# Not for a GPU, and not small (about 4 GB): one environment is what the lock describes (docs/adr/0001).

FROM python:3.11-slim-bookworm

RUN apt-get update \
    && apt-get install --yes --no-install-recommends default-jre-headless \
    && rm -rf /var/lib/apt/lists/* \
    && pip install --no-cache-dir uv==0.13.9 \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /state cartwheel

ENV VIRTUAL_ENV=/opt/venv \
    PATH=/opt/venv/bin:$PATH \
    SPARK_HOME=/opt/venv/lib/python3.11/site-packages/pyspark \
    PYSPARK_PYTHON=/opt/venv/bin/python \
    PYSPARK_DRIVER_PYTHON=/opt/venv/bin/python \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    CARTWHEEL_HOME=/state \
    CARTWHEEL_CACHE=/opt/cache

WORKDIR /app
COPY requirements.lock ./
RUN uv venv --python /usr/local/bin/python3 /opt/venv \
    && uv pip sync --no-cache --require-hashes --compile-bytecode requirements.lock

COPY . .
# The second line fetches the Spark jars and checks them against deploy/local/spark_jars.sha256.
# Spark makes the folder spark-warehouse, which stays empty, where it is started.
RUN uv pip install --no-cache --no-deps --no-build-isolation --editable . \
    && CARTWHEEL_HOME=/tmp/build python -m deploy.local prepare \
    && rm -rf /tmp/build \
    && mkdir -p /state/mlflow /state/serving /state/gateway /state/exposures spark-warehouse \
    && chown -R cartwheel:cartwheel /state spark-warehouse

USER cartwheel
# No default command: docker-compose.yaml names one for each service.
