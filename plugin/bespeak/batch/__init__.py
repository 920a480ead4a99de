"""Rewrites many queries from a file into a file. An interrupted run resumes where it stopped.

The input is read in chunks. Any process can rewrite a chunk by itself. Chunks are committed in order: first the output
and the rejected lines, then the position in the journal. The output depends only on the input, the profiles, the model
and the options, so an interrupted run and an uninterrupted one write the same bytes.
"""
