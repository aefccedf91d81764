"""Judges: what an answer is taken to be, and whether it is right. One file each.

`listed.JUDGES` has them all. `lmms_eval` and `vlmevalkit` judge as those harnesses do, faults
included.
"""
