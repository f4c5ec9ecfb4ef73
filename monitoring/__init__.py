"""How the deployed model fares on live traffic, and whether to train a new one. Pure decisions over small tables."""
