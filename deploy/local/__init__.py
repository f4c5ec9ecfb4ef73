"""The whole stack on one machine without Docker: `python -m deploy.local`, `make run`."""
