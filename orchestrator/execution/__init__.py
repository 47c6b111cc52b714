"""Floor 3: everything that touches Ray, but Tune.

In: connecting, actors, groups and their supervisor, tasks that sample and score. Not in: what should happen (the
decisions are pure, in plan/), what MLflow is told (tracking/), what a configuration is (runs/).
"""
