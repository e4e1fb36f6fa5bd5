"""Child processes of a worker: forked from a warm process, followed through pipes, killed as a group.

`children` is the interface for a worker; `child` runs inside a child process; `template` runs inside the warm process
that children are forked from, and `warm` controls it from outside.
"""
