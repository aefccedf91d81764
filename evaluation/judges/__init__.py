"""Judges: parse an answer and decide whether it is right. One file each.

`listed.JUDGES` has them all. `lmms_eval` and `vlmevalkit` judge as those harnesses do, including
their errors.
"""
