"""The uncertainty of a figure, and of a difference between two methods on the same questions.

`intervals` is for independent right-or-wrong items, `bootstrap` for everything else, `compare`
chooses the test and states the result.
"""
