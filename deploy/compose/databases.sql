-- Run once, when the database server's volume is new. Airflow and MLflow each get a database of their own:
-- in one they would break each other's table of schema versions.
CREATE DATABASE cartwheel_airflow ENCODING 'UTF8' TEMPLATE template0;
CREATE DATABASE cartwheel_mlflow ENCODING 'UTF8' TEMPLATE template0;
