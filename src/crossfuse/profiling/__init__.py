"""How fast is a bundle, and against what?

`run` does it all for a bundle. `measure` times calls (rounds, intervals, load, cold starts),
`baselines` are what one would use otherwise, `explain` finds where the time goes, and `report`
holds what came out, compares it, and shows it.
"""
