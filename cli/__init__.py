"""The command line: one thin file a verb, `sinkscope --help`.

Nothing heavy is imported before a verb runs, so that help is instant. What the user can mend ends
with one sentence on standard error and exit code 2.
"""
