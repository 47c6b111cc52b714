"""Floor 3: everything that touches Ray, but Tune.

In: connecting, actors and their supervisor, Ray Train, tasks that sample and score. Not in: what should happen (the
decisions are pure, in plan/), what MLflow is told (tracking/), what a configuration is (runs/).
"""
