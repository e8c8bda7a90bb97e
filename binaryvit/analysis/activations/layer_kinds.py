"""What kind of layer a module path names: where in a block signs are taken and binary products are made."""

import re

# Where the sign of an activation is taken, and which layers have binary weights, in the order of computation.
_KINDS = {
    r"embed\.(binarize|proj)": "patch merging",
    r"attn\.reduce\.(binarize|linear)": "spatial reduction",
    r"attn\.[qkv]\.(binarize|linear)": "query, key, value",
    r"attn\.binarize_q": "q of q·k",
    r"attn\.binarize_k": "k of q·k",
    r"attn\.binarize_v": "v of attention·v",
    r"attn\.proj\.(binarize|linear)": "attention projection",
    r"mlp\.fc1\.(binarize|linear)": "FFN 1",
    r"mlp\.fc2\.(binarize|linear)": "FFN 2",
}
KINDS = tuple(_KINDS.values())


def kind_of(layer: str) -> str:
    """The kind, one of KINDS, of a layer's module path; the path itself where it is none of them."""
    return next((kind for pattern, kind in _KINDS.items() if re.search(rf"(^|\.){pattern}$", layer)), layer)
