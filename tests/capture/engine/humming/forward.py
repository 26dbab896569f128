"""Where engines call Humming."""

from humming import ops


def humming_forward(
    config, inputs, weight, weight_scale=None, zero_point=None, bias=None, weight_scale_2=None, outputs=None,
    input_scale=None, input_scale_2=None, expert_layout=None, locks=None, compute_config=None, tuning_config=None,
):  # fmt: skip
    return ops.humming_gemm(
        layer_config=config, inputs=inputs, weight=weight, weight_scale=weight_scale, weight_scale_2=weight_scale_2,
        outputs=outputs, expert_layout=expert_layout,
    )  # fmt: skip
