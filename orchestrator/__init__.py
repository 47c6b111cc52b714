"""Decide what runs where: the only code that knows Ray, Tune and MLflow."""
