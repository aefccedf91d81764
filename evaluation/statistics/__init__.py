"""How sure a figure is, and a difference between two methods on the same questions.

`intervals` is for independent right-or-wrong items, `bootstrap` for everything else, `compare`
chooses and says what it comes to.
"""
