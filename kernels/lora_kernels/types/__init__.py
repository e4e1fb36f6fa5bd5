"""One room per PEFT type that is merged: how its tensors match a base, and the updates they make.

`table` lists the rooms; `matching` is what they match with; `forms` are updates that several types make. A room may be
imported without numpy, which is loaded when an update is.
"""
