"""Many queries rewritten from a file into a file, so that a run that was cut off anywhere goes on where it stood.

The input is read in chunks, each is rewritten by itself (in any process), and committed in order: output and rejected
lines first, then in the journal how far all of it came. What is written depends on the input, the profiles, the model
and the options alone, so that a run that went on and one that never stopped write the same bytes.
"""
