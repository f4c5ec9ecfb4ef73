"""The Airflow side of Cartwheel: assets, and operators that start work by command line only."""
