"""Tasks: one file each, one row of `listed.TASKS`.

A task reads its data into questions and says, for each protocol, how they are put to a model and
judged.
"""
