"""Trains, evaluates, gates and registers the recommender: `python -m training VERB`."""
