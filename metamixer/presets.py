"""Published mixers by name: plain configurations of registered operations, with their papers' parameters.

Residuals are the block's; where a paper's module has another one inside, it is left out. Heads have 32
channels, as in MetaFormer's, where the size is not part of the method. A name stands wherever a mixer does:
`token_mixer="xca"`.
"""

from typing import Any

from . import ops  # noqa: F401 (registers the operations)
from .config import unknown
from .operation import REGISTRY

Mixer = dict[str, Any]

_REP_DEPTHWISE = {"name": "depthwise", "kernel_size": 7, "norm": True, "small_kernel": 3}
_LINEAR_GELU = {"name": "linear", "activation": "gelu"}
_UNIT_QUERY = {"name": "linear", "normalize": "channels"}
_SILU_QUERY = {"name": "linear", "activation": "silu"}
_POSITIVE_QUERY = {"name": "linear", "activation": "elu_plus_one"}
_POSITIVE_KEY = {"name": "scaled_dot", "scale": False, "activation": "elu_plus_one"}
_GATED_LOCAL_VALUES = {"name": "matmul", "local_kernel": 5, "gate": "identity"}
# values that are the query itself
_QUERY_GATE = {"name": "hadamard", "values_from": "query", "linear": False}


def _mixer(query: Any, query_key: Any, activation: Any, coefficient_value: Any) -> Mixer:
    return {
        "query": query,
        "query_key": query_key,
        "activation": activation,
        "coefficient_value": coefficient_value,
    }


PRESETS: dict[str, Mixer] = {
    # Dynamic keys, dynamic values.
    # Self-attention, arXiv 1706.03762.
    "attention": _mixer("linear", "scaled_dot", "softmax", "matmul"),
    # Softmax replaced by ReLU over the number of tokens, arXiv 2309.08586.
    "relu_attention": _mixer("linear", "scaled_dot", {"name": "relu", "over_keys": True}, "matmul"),
    # Softmax replaced by σ(· − log N), arXiv 2409.04431.
    "sigmoid_attention": _mixer("linear", "scaled_dot", {"name": "sigmoid", "over_keys": True}, "matmul"),
    # ReLU feature maps, divided by their sum; evaluated as Q(KᵀV). EfficientViT, one scale, arXiv 2205.14756.
    "linear_attention": _mixer(
        {"name": "linear", "activation": "relu"},
        {"name": "scaled_dot", "head_dim": 16, "scale": False, "activation": "relu"},
        "l1_norm",
        "matmul",
    ),
    # As many heads as channels, cosine similarity; evaluated as Q ⊙ Σ(K ⊙ V). arXiv 2209.07484.
    "hydra_attention": _mixer(
        _UNIT_QUERY, {"name": "scaled_dot", "head_dim": 1, "normalize": "channels"}, "identity", "matmul"
    ),
    # Softmax over 7×7 neighbours, with relative position bias; windows cut at the border. arXiv 2204.07143.
    "neighbourhood_attention": _mixer("linear", "neighbourhood", "softmax", "windowed_sum"),
    # Softmax over channels by their cross-covariance, XCiT, arXiv 2106.09681.
    "xca": _mixer({"name": "linear", "normalize": "tokens"}, "cross_covariance", "softmax", "channel_matmul"),
    # A sigmoid of X gates what attention found, before the output projection, arXiv 2505.06708.
    "gated_attention": _mixer("linear", "scaled_dot", "softmax", {"name": "matmul", "gate": "sigmoid"}),
    # Scores fall with the Manhattan distance, RMT in full form, arXiv 2309.11523; its code also rotates both operands.
    "rmt": _mixer("linear", {"name": "scaled_dot", "bias": "decay"}, "softmax", {"name": "matmul", "local_kernel": 5}),
    # The difference of two softmax maps, arXiv 2410.05258; the 0.2 is 1 minus the start of λ.
    "differential_attention": _mixer(
        "linear", {"name": "scaled_dot", "head_dim": 16}, "differential", {"name": "matmul", "head_norm": 0.2}
    ),
    # 49 agents ask all tokens, and all tokens ask the agents, arXiv 2312.08874; without its position biases.
    "agent_attention": _mixer(
        "linear",
        {"name": "scaled_dot", "keys_from": "query", "pool": 7},
        "softmax",
        {"name": "agent_matmul", "local_kernel": 3},
    ),
    # Single-head attention on a part of the channels, SHViT, arXiv 2401.16456.
    "shvit": _mixer(
        {"name": "linear", "norm": True, "channels": 16, "part": 0.25},
        {"name": "scaled_dot", "head_dim": None, "norm": True, "part": 0.25},
        "softmax",
        "part_matmul",
    ),
    # 3×3 neighbours by shifts that are partly learned, arXiv 2304.04237; windows cut at the border.
    "slide_attention": _mixer("linear", "slide", "softmax", "slide_sum"),
    # Linear attention whose values are X itself, MLLA, arXiv 2405.16605; without rotary encoding, and without
    # the 1×1, depthwise 3×3 and SiLU that its block puts in front of queries, keys and values alike.
    "mlla": _mixer(
        _POSITIVE_QUERY,
        _POSITIVE_KEY,
        "l1_norm",
        {"name": "matmul", "linear": False, "local_kernel": 3, "gate": "silu"},
    ),
    # Linear attention that tells queries apart, with a local kernel made of the map's mean, arXiv 2412.06590.
    "inline": _mixer(
        "linear", "scaled_dot", "unit_sum", {"name": "matmul", "local_kernel": 3, "local_from_input": True}
    ),
    # Linear attention that keeps the magnitude of queries, arXiv 2507.00698; without rotary encoding.
    "mala": _mixer(_POSITIVE_QUERY, _POSITIVE_KEY | {"scale": True}, "magnitude_aware", _GATED_LOCAL_VALUES),
    # Linear attention with keys weighed by the mean query, arXiv 2411.07635; without rotary encoding.
    "rala": _mixer(_POSITIVE_QUERY, _POSITIVE_KEY | {"weighted": True}, "l1_norm", _GATED_LOCAL_VALUES),
    # Linear attention of positive and negative parts, arXiv 2501.15061; one local kernel for each channel.
    "polaformer": _mixer("linear", "polarity", "l1_norm", _GATED_LOCAL_VALUES),
    # Non-causal state-space duality of VSSD, arXiv 2407.18559: queries and keys of 64 channels for all heads.
    "non_causal_ssd": _mixer(
        {"name": "linear", "channels": 64, "kernel_size": 3, "activation": "silu"},
        {"name": "scaled_dot", "head_dim": None, "scale": False, "kernel_size": 3, "activation": "silu"},
        "identity",
        {"name": "state_space", "kernel_size": 3, "activation": "silu", "layer_norm": True, "gate": "identity"},
    ),
    # The delta rule over the raster, arXiv 2406.06484 and 2412.06464, in quadratic form (for some hundred tokens);
    # without the short convolutions of its layers.
    "delta_net": _mixer(
        _SILU_QUERY,
        {"name": "delta", "activation": "silu"},
        "identity",
        {"name": "matmul", "activation": "silu", "head_norm": 1.0},
    ),
    "gated_delta_net": _mixer(
        _SILU_QUERY,
        {"name": "delta", "activation": "silu", "gated": True},
        "identity",
        {"name": "matmul", "activation": "silu", "head_norm": 1.0, "gate": "silu"},
    ),
    # Static keys, static values.
    # Transformer FFN, arXiv 1706.03762, with GELU.
    "ffn": _mixer("identity", {"name": "linear", "expansion": 4.0}, "gelu", "linear"),
    # Primer's FFN, arXiv 2109.08668.
    "squared_relu_ffn": _mixer("identity", {"name": "linear", "expansion": 4.0}, "squared_relu", "linear"),
    # The FFN of the MetaFormer baselines, arXiv 2210.13452.
    "star_relu_ffn": _mixer("identity", {"name": "linear", "expansion": 4.0}, "star_relu", "linear"),
    # The ConvNeXt block as published, with LayerNorm, arXiv 2201.03545.
    "convnext": _mixer(
        {"name": "depthwise", "kernel_size": 7, "normalize": "layer"},
        {"name": "linear", "expansion": 4.0},
        "gelu",
        "linear",
    ),
    # FFNet's channel mixer: a ConvNeXt block with foldable norms and 3 times the width, arXiv 2406.02021.
    "convnext_ffn": _mixer(_REP_DEPTHWISE, {"name": "linear", "expansion": 3.0}, "gelu", "linear"),
    # FFNet's token mixer: self-attention with all slots made static, arXiv 2406.02021.
    "ffnified_attention": _mixer({"name": "linear", "norm": True}, _REP_DEPTHWISE, "gelu", _REP_DEPTHWISE),
    # MLP-Mixer's token mixing, arXiv 2105.01601; the hidden layer is 2N tokens. Tied to the image size.
    "mlp_mixer": _mixer("identity", {"name": "token_linear", "expansion": 2}, "gelu", "token_linear"),
    # External attention: a memory of 64 learned keys and values, arXiv 2105.02358. Its closing 1×1, which
    # is one linear map with the values' memory, is left out.
    "external_attention": _mixer("linear", "memory", "double_norm", {"name": "linear", "bias": False}),
    # Static keys, dynamic values: gates.
    # Gated CNN block of MambaOut, arXiv 2405.07992.
    "mambaout": _mixer(
        "identity",
        {"name": "linear", "expansion": 8 / 3},
        "gelu",
        {"name": "hadamard", "kernel_size": 7, "conv_ratio": 1.0},
    ),
    # StarNet's star operation between its two depthwise convolutions, arXiv 2403.19967.
    "starnet": _mixer(
        {"name": "depthwise", "kernel_size": 7, "norm": True},
        {"name": "linear", "expansion": 4.0},
        "relu6",
        {"name": "hadamard", "values_from": "query", "projection_norm": True, "projection_kernel": 7},
    ),
    # Large-kernel attention of VAN, arXiv 2202.09741.
    "van": _mixer(_LINEAR_GELU, "large_kernel", "identity", _QUERY_GATE),
    # Multi-scale convolutional attention of SegNeXt, arXiv 2209.08575.
    "segnext": _mixer(_LINEAR_GELU, "multi_scale", "identity", _QUERY_GATE),
    # Convolutional modulation of Conv2Former, arXiv 2211.11943.
    "conv2former": _mixer(_LINEAR_GELU, {"name": "depthwise", "kernel_size": 11}, "identity", "hadamard"),
    # Multi-order gated aggregation of MogaNet, arXiv 2211.03295.
    "moganet": _mixer("decomposed", {"name": "linear", "expansion": 1.0}, "silu", "multi_order"),
    # Spatial gating unit of gMLP within its two linear layers (2·3 times the width), arXiv 2105.08050.
    # Tied to the image size.
    "gmlp": _mixer(
        {"name": "linear", "expansion": 3.0, "activation": "gelu", "normalize": "layer"},
        {"name": "token_linear", "open": True},
        "identity",
        {"name": "hadamard", "activation": "gelu"},
    ),
    # Large-small convolution of LSNet, arXiv 2503.23135; without its closing BatchNorm. Channels that share a kernel
    # are neighbours here.
    "lsnet": _mixer(
        {"name": "linear", "norm": True, "expansion": 0.5, "activation": "relu"},
        "window_kernel",
        "identity",
        {"name": "windowed_sum", "linear": False, "projection": False},
    ),
    # Focal modulation of FocalNet, two levels, arXiv 2203.11926.
    "focalnet": _mixer("linear", "focal", "identity", "hadamard"),
    # Recursive gated convolution of HorNet, order 2, arXiv 2207.14284.
    "hornet": _mixer(
        {"name": "linear", "expansion": 1.5}, {"name": "depthwise", "kernel_size": 7}, "identity", "nested_hadamard"
    ),
    # Hidden-state mixer of EfficientViM, arXiv 2411.15241: 64 states of the map, read by learned keys.
    "efficient_vim": _mixer("identity", {"name": "memory", "kernel_size": 3}, "identity", "hidden_states"),
    # Dynamic keys, static values.
    # Additive attention of SwiftFormer, arXiv 2303.15446: a partial fit, its values see the query by a skip.
    "swiftformer": _mixer(
        _UNIT_QUERY,
        {"name": "hadamard", "pooled": True, "normalize": "channels"},
        "identity",
        "linear_skip",
    ),
    # Our own: softmax over the neighbours picks among learned values of their relative positions.
    "relative_attention": _mixer("linear", "neighbourhood", "softmax", "relative_values"),
}

# No MetaMixers: one linear map whose coefficients ignore the query, or none; described in ops/baseline.py.
BASELINES: dict[str, Mixer] = {
    name: {"name": name}
    for name in ("identity", "pooling", "depthwise", "rep_mixer", "random_mixing", "global_filter", "recursive_pyramid")
}


def preset(name: str, **changes: Any) -> Mixer:
    """A preset or a registered baseline with some of its slots (of a baseline: parameters) replaced.

    Raises ConfigError: no such preset or baseline; the line names the nearest, or lists all.
    """
    baselines = REGISTRY["baseline"]
    if name not in PRESETS and name not in baselines:
        listed = f"the presets are {', '.join(PRESETS)}, the baselines {', '.join(baselines)}"
        raise unknown("mixer", name, [*PRESETS, *baselines], listed)
    return {**PRESETS.get(name, {"name": name}), **changes}
