"""What measured numbers say: ties and fronts, which parameters matter, which assignment is best. Pure mathematics.

In: functions of plain numbers and loss curves. Not in: anything that knows a study, a file or a cluster.
"""
