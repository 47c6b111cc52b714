"""Carrying a study out: what to look at next, each configuration up its ladder, progress and MLflow.

In: the driver and whom it talks to. Not in: what a study is (study/) or its page (report/). Tune only in tune.py.
"""
