"""What a run says: tables for a terminal, Markdown, CSV, and one HTML page that needs nothing else.

`gather` reads runs and computes, `words` puts it into sentences, the other files write.
"""
