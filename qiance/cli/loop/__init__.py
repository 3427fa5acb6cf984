"""The main job: the whole loop on one data set, step by step.

The rooms are imported inside the steps: `qiance` itself knows none of them.
"""
