"""The command line: one thin file per verb, `sinkscope --help`.

Nothing heavy is imported before a verb runs, so that help is instant. An error that the user can
fix ends with one sentence on standard error and exit code 2.
"""
