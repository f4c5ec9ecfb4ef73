"""
### Recommend to everybody, without being asked

1. `reconcile`: is there a new champion, or has a sink not got what it recommends? Neither: the run ends here.
2. `recommend`: Spark asks the champion's SavedModel for every user; the answers, those that the endpoint gives, replace the
   Delta table `recommendations` in one commit.
3. `publish`: to a table of PostgreSQL and a topic of Kafka, where the settings name them
   (`CARTWHEEL_RECOMMENDATIONS_DATABASE_URL`, `CARTWHEEL_RECOMMENDATIONS_KAFKA`); else it is skipped.

Off at first: turn it on where mails, pages or caches are made of lists for all users. Each step may be repeated, also
after a kill at any instant. Woken by the asset `champion`.
"""

from airflow.sdk import DAG
from cartwheel_airflow.assets import CHAMPION
from cartwheel_airflow.operators import DAG_DEFAULTS, spark_job, step, woken_by

from contracts.names import BATCH_RECOMMEND

with DAG(
    BATCH_RECOMMEND,
    doc_md=__doc__,
    schedule=woken_by(CHAMPION, minute=57),
    is_paused_upon_creation=True,
    **DAG_DEFAULTS,
):
    reconcile = step("reconcile", "spark_jobs.pending", "recommend")
    recommend = spark_job("recommend", "recommend")
    publish = step("publish", "spark_jobs.publish")

    reconcile >> recommend >> publish
