"""Tags: movable names of versions, with their whole history."""
