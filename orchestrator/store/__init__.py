"""Floor 1: trained experts by content key, on disk and shared through a URI.

In: finding, claiming, publishing, counting them. Not in: training (workloads), Ray, MLflow, the terminal.
"""
