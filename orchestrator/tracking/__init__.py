"""Floor 3: everything that touches MLflow.

In: the tracker and its spool, what a configuration, an expert or a study logs, the browser. Not in: Ray, or anything
that waits for the tracker: training never does.
"""
