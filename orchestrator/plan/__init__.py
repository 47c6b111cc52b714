"""Ground floor: pure. What would run, what to do when something happens, where things lie, events, errors.

In: functions of plain values, quick to test. Not in: Ray, MLflow, anything that starts, waits or prints.
"""
