"""Studies: methods x worlds x tasks x scales x seeds of the laboratory, at equal generated tokens.

`study` reads the file, `plan` makes it into runs, `execute` does one run in a process of `pool`, `store` keeps what is
finished, `files` writes the results beside the study, and `table` makes a table of those files alone.
"""
