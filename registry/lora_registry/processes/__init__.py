"""Child processes of a worker: forked from a warm process, followed through pipes, killed as a group.

`children` is what a worker uses; `child` is the inside of a child process; `template` is the inside of the warm process
that children are forked from, and `warm` its outside.
"""
