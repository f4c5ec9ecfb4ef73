"""Serving: publish registered models to TF Serving safely, replay, promote, roll back, and ask for recommendations."""
