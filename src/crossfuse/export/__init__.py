"""From a PyTorch module to an ONNX graph in which every attention is one
``crossfuse.FusedAttention`` node.

`sources` finds the module, `census` counts its attentions in eager execution, `capture` traces it,
`passes` rewrite, `translate` goes to ONNX, and `fuse` tells that story and fills the ledger.
"""

from crossfuse.core.callable_package import make_callable

make_callable(__name__)
