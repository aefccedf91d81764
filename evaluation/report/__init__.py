"""The report of a run: tables for a terminal, Markdown, CSV, and one self-contained HTML page.

`gather` reads runs and computes, `words` makes the sentences, the other files write.
"""
