"""One room per mergeable PEFT type: how its tensors match a base, and the resulting updates.

`table` lists the rooms; `matching` has the shared matching code; `forms` has updates that several types use. Rooms can
be imported without numpy, which is imported when an update is loaded.
"""
