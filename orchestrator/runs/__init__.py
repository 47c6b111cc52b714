"""Floor 4: one configuration from description to score, and what is done with trained ones.

In: preparing its data, training, scoring, comparing, exporting, its figures; whether the machine is fit for it.
Not in: what Ray or MLflow are told (execution/, tracking/), or several configurations of a study (search/).
"""
