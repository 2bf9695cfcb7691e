"""Half precision decided in the graph, because strongly typed engines take it from there.

`cast` turns the fp32 graph into one that computes in fp16 or bf16, with fp32 islands, which the
rules of `islands` find; `simulate` gives the fp32 graph that rounds as the half-precision one does,
so that its numbers can be had on any CPU; `activation_stats` records the ranges of activations;
`mixed_search` looks for the cheapest set of islands that passes, in the trials of `fewest`;
`stages` casts all stages of a bundle.
"""
