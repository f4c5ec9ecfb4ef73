"""The Spark jobs: land, clean, features, attribute, and the checks beside them. Each runs alone."""
