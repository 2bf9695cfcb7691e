"""How fast is a bundle, and against what?

`sampling` runs callables interleaved and keeps every sample, `statistics` sums them up with
intervals, `inputs` makes inputs at any size, `rivals` are what one would use otherwise, `load` asks
from several callers at once, `coldstart` starts fresh processes, `report` holds what came out,
`compare` finds regressions between two reports, and `run` does it all for a bundle.
"""
