"""Decides what runs where, and carries it out with Ray and MLflow. Rooms on floors; imports only point down.

6 cli/                     commands: parse, call, print
5 search/                  studies: many configurations
4 runs/                    one configuration, from description to score
3 execution/  tracking/    all of Ray; all of MLflow
2 terminal/                progress and tables
1 store/                   experts by content key
0 plan/                    pure: plans, policies, places, events, errors

tests/unit/test_imports.py holds every module to its floor. `workloads`, below all of them, trains and scores.
"""
