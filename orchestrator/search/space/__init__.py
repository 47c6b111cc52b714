"""What may vary in a study, and how points of it are drawn. Pure: knows no run on disk, no Ray, no MLflow.

In: distributions, conditions, samplers. Not in: what a study is (study/), or what scores mean (inference/).
"""
