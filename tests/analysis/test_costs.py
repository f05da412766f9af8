"""Costs read off HLO: programs whose products and traffic are counted by hand, and lines as compilers write them."""

from __future__ import annotations

from collections import Counter

import jax
import jax.numpy as jnp
import pytest

from c3jax.analysis.costs import Costs, compute_costs, share_costs
from c3jax.analysis.hlo import count_bytes, read_module
from c3jax.analysis.roofline import CHIPS, compute_exchange, compute_seconds


def lower(function, *arguments):
    return compute_costs(read_module(jax.jit(function).lower(*arguments).compiler_ir("hlo").as_hlo_text()))


def compile_text(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().as_text()


def run_loops(x_BD, w_DD):
    """Five products in a scan, then up to seven more, in two loops of which the second takes up the first's count."""
    x_BD = jax.lax.scan(lambda x_BD, _: (x_BD @ w_DD, None), x_BD, None, length=5)[0]

    def more(enough):
        return lambda state: (state[0] < 8) & (jnp.sum(state[1]) > enough)

    def advance(state):
        return state[0] + 1, state[1] @ w_DD

    state = jax.lax.while_loop(more(2.0), advance, (jnp.int32(1), x_BD))
    return jax.lax.while_loop(more(1.0), advance, state)[1]


X, W = jax.ShapeDtypeStruct((3, 16), jnp.float32), jax.ShapeDtypeStruct((16, 16), jnp.float32)
PRODUCT = 2 * 3 * 16 * 16


@pytest.mark.parametrize("is_compiled", [False, True])
def test_loops_are_multiplied_out_and_those_that_may_end_early_are_apart(is_compiled: bool):
    if is_compiled:
        costs = compute_costs(read_module(compile_text(run_loops, X, W)))
    else:
        costs = lower(run_loops, X, W)
    assert costs.fixed.flops == {"f32": 5 * PRODUCT}
    assert costs.open.flops == {"f32": 7 * PRODUCT}  # from 1 to the bound of 8; the second loop shares it
    assert costs.unread == 0
    assert costs.total.flops == {"f32": 12 * PRODUCT}


def test_a_loop_without_a_bound_is_counted_once_and_reported():
    costs = lower(
        lambda x_BD, w_DD: jax.lax.while_loop(lambda x_BD: jnp.sum(x_BD) > 1, lambda x_BD: x_BD @ w_DD, x_BD), X, W
    )
    assert costs.fixed.flops == {"f32": PRODUCT} and costs.unread == 1


def test_products_are_kept_apart_by_type_and_the_larger_branch_counts():
    def branch(x_BD, w_DD):
        half = (x_BD.astype(jnp.bfloat16) @ w_DD.astype(jnp.bfloat16)).astype(jnp.float32)
        return jax.lax.cond(x_BD[0, 0] > 0, lambda: half, lambda: x_BD @ w_DD @ w_DD)

    costs = lower(branch, X, W)
    assert costs.fixed.flops == {"bf16": PRODUCT, "f32": 2 * PRODUCT}
    assert share_costs(costs, 2).total.flops == {"bf16": PRODUCT // 2, "f32": PRODUCT}


def test_the_traffic_of_one_product_is_its_operands_and_its_result():
    costs = compute_costs(read_module(compile_text(jnp.matmul, X, W)))
    assert costs.total.bytes == 4 * (3 * 16 + 16 * 16 + 3 * 16)


# As a TPU's compiler writes them: layouts with memory spaces (S(1) is on the chip), copies that start and end.
TEXT = """\
HloModule jit_f, entry_computation_layout={(f32[8,100]{1,0:T(8,128)})->f32[8,100]{1,0}}

%laid_anew (param_0.4: f32[8,100]) -> f32[8,100] {
  %param_0.4 = f32[8,100]{1,0:T(8,128)} parameter(0)
  ROOT %tiles = f32[8,100]{1,0:T(4,128)} copy(%param_0.4)
}

%fused_slice (param_0: f32[8,100], param_1: s32[]) -> f32[1,100] {
  %param_0 = f32[8,100]{1,0:T(8,128)} parameter(0)
  %param_1 = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %laid = f32[8,100]{1,0:T(4,128)} fusion(%param_0), output_to_operand_aliasing={{}: (0, {})}, calls=%laid_anew
  ROOT %slice = f32[1,100]{1,0:T(1,128)} dynamic-slice(%laid, %param_1, %zero), dynamic_slice_sizes={1,100}
}

%fused_update (param_0.1: f32[8,100], param_1.1: f32[1,100], param_2: s32[]) -> f32[8,100] {
  %param_0.1 = f32[8,100]{1,0:T(8,128)} parameter(0)
  %param_1.1 = f32[1,100]{1,0:T(1,128)} parameter(1)
  %param_2 = s32[]{:T(128)} parameter(2)
  %zero.1 = s32[]{:T(128)} constant(0)
  ROOT %update = f32[8,100]{1,0:T(8,128)} dynamic-update-slice(%param_0.1, %param_1.1, %param_2, %zero.1)
}

%passed (param_0.2: f32[8,100]) -> f32[800] {
  %param_0.2 = f32[8,100]{1,0:T(8,128)} parameter(0)
  ROOT %flat = f32[800]{0:T(1024)} bitcast(%param_0.2)
}

%fused_norm (param_0.3: f32[8,100]) -> f32[800] {
  %param_0.3 = f32[8,100]{1,0:T(8,128)} parameter(0)
  %inner = f32[800]{0:T(1024)} fusion(%param_0.3), kind=kLoop, calls=%passed
  ROOT %double = f32[800]{0:T(1024)S(1)} add(%inner, %inner)
}

ENTRY %main (x: f32[8,100], at: s32[]) -> f32[8,100] {
  %x = f32[8,100]{1,0:T(8,128)} parameter(0)
  %at = s32[]{:T(128)S(6)} parameter(1)
  %copy-start = (f32[8,100]{1,0:T(8,128)S(1)}, f32[8,100]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x)
  %copy-done = f32[8,100]{1,0:T(8,128)S(1)} copy-done(%copy-start)
  %near = f32[8,100]{1,0:T(8,128)S(1)} add(%copy-done, %copy-done), metadata={op_name="jit(f)/add(x)"}
  %row = f32[1,100]{1,0:T(1,128)} fusion(%x, /*index=1*/%at), kind=kLoop, calls=%fused_slice
  %gather-start = (f32[1,100]{1,0}, f32[4,100]{1,0}) all-gather-start(%row), replica_groups={{0,1,2,3}}, dimensions={0}
  %gather-done = f32[4,100]{1,0} all-gather-done(%gather-start)
  %norm = f32[800]{0:T(1024)S(1)} fusion(%x), kind=kOutput, calls=%fused_norm
  ROOT %out = f32[8,100]{1,0:T(8,128)} fusion(%x, %row, %at), kind=kLoop, calls=%fused_update
}
"""


def test_a_slice_an_update_and_what_stays_on_the_chip_are_no_passes_over_whole_arrays():
    costs = compute_costs(read_module(TEXT))
    copied, sliced = 3200, 400 + 400  # copied into the chip, where `near` stays; a row of x read, and written
    gathered, updated = 400 + 1600, 400 + 400  # the row, and all four; the row read, and written into its buffer
    assert costs.total.bytes == copied + sliced + gathered + updated + 3200  # x, read by a fusion in a fusion
    assert costs.total.calls == {"all-gather": 1} and costs.total.moved == {"all-gather": 1600}


# A gather that a TPU's compiler begins in one fusion, goes on with in the loop's and ends in a third.
CUT = """HloModule jit_f, is_scheduled=true

%begins (own: f32[1,100]) -> (f32[1,100], f32[4,100], s32[2]) {
  %own = f32[1,100]{1,0} parameter(0)
  %gather.1 = f32[4,100]{1,0} all-gather(%own), dimensions={0}, backend_config={"config":{"flag_start":"-1"}}
  ROOT %begun = (f32[1,100], f32[4,100], s32[2]) custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}

%goes_on (sums: f32[8], own: f32[1,100], all: f32[4,100]) -> (f32[8], f32[4,100], f32[4,100]) {
  %sums = f32[8]{0} parameter(0)
  %own = f32[1,100]{1,0} parameter(1)
  %all = f32[4,100]{1,0} parameter(2)
  %more = f32[8]{0} add(%sums, %sums)
  %gather.2 = f32[4,100]{1,0} all-gather(%own), dimensions={0}, backend_config={"config":{"flag_start":"2"}}
  ROOT %both = (f32[8]{0}, f32[4,100]{1,0}, f32[4,100]{1,0}) tuple(%more, %gather.2, %all)
}

%ends (own: f32[1,100], all: f32[4,100]) -> f32[4,100] {
  %own = f32[1,100]{1,0} parameter(0)
  %all = f32[4,100]{1,0} parameter(1)
  %gather.3 = f32[4,100]{1,0} all-gather(%own), dimensions={0}, backend_config={"config":{"flag_start":"2"}}
  ROOT %ended = f32[4,100]{1,0} custom-call(%own, %gather.3, %all), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (own: f32[1,100], sums: f32[8]) -> f32[4,100] {
  %own = f32[1,100]{1,0} parameter(0)
  %sums = f32[8]{0} parameter(1)
  %begin = (f32[1,100]{1,0}, f32[4,100]{1,0}, s32[2]{0:S(4)}) fusion(%own), kind=kCustom, calls=%begins
  %all = f32[4,100]{1,0} get-tuple-element(%begin), index=1
  %step = (f32[8]{0}, f32[4,100]{1,0}, f32[4,100]{1,0}) fusion(%sums, %own, %all), kind=kCustom, calls=%goes_on
  %most = f32[4,100]{1,0} get-tuple-element(%step), index=2
  ROOT %end = f32[4,100]{1,0} fusion(%own, %most), kind=kCustom, calls=%ends
}
"""


def test_a_collective_that_is_cut_into_fusions_is_one():
    costs = compute_costs(read_module(CUT))
    assert costs.total.calls == {"all-gather": 1} and costs.total.moved == {"all-gather": 1600}
    assert costs.total.bytes == 400 + 1600 + 2 * 32  # the own row read and all four written; sums read and written


# Attention of 3 rows, 4 heads of 16 and 2 of keys, 128 queries and 384 keys, as Pallas and cuDNN are called.
KERNELS = r"""HloModule jit_f

ENTRY %main (at: s8[1,1,2], query: bf16[3,4,128,16], key: bf16[3,2,384,16]) -> bf16[3,2,384,16] {
  %at = s8[1,1,2]{2,1,0} parameter(0)
  %query = bf16[3,4,128,16]{3,2,1,0} parameter(1)
  %key = bf16[3,2,384,16]{3,2,1,0} parameter(2)
  %out = bf16[3,4,128,16]{3,2,1,0} custom-call(%at, %query, %key), frontend_attributes={kernel_metadata={
"xprof_metadata":"{\"block_q\": 128, \"block_q_dkv\": 128}"
}}, backend_config={"custom_call_config": {"body": "x"}}
  ROOT %back = bf16[3,2,384,16]{3,2,1,0} custom-call(%at, %out, %key), frontend_attributes={kernel_metadata={
"xprof_metadata":"{\"block_q_dkv\": 128}"
}}, backend_config={"custom_call_config": {"body": "x"}}
}
"""
TURNED = """HloModule jit_f

ENTRY %main (query: bf16[3,128,4,16], key: bf16[3,384,2,16]) -> bf16[3,4,128,16] {
  %query = bf16[3,128,4,16]{3,2,1,0} parameter(0)
  %key = bf16[3,384,2,16]{3,2,1,0} parameter(1)
  ROOT %out = bf16[3,4,128,16]{3,1,2,0} custom-call(%query, %key), custom_call_target="__cudnn$fmhaScaleBiasSoftmax"
}
"""


def test_kernels_of_attention_are_their_products_and_one_pass_over_operands():
    product, query, key = 2 * 3 * 4 * 128 * 384 * 16, 2 * 3 * 4 * 128 * 16, 2 * 3 * 2 * 384 * 16
    costs = compute_costs(read_module(KERNELS)).total
    assert costs.flops == {"bf16": (2 + 5) * product}
    assert costs.bytes == 2 * (2 + query + key) + query + key
    one = KERNELS.replace("bf16[3,", "bf16[").replace("{3,2,1,0}", "{2,1,0}")  # Pallas drops an axis of one row
    assert compute_costs(read_module(one)).total.flops == {"bf16": (2 + 5) * product // 3}
    assert compute_costs(read_module(TURNED)).total.flops == {"bf16": 2 * product}
    back = TURNED.replace("Softmax", "SoftmaxBackward")
    assert compute_costs(read_module(back)).total.flops == {"bf16": 5 * product}


def test_bytes_of_shapes():
    assert count_bytes("(bf16[2,3]{1,0}, /*index=1*/pred[5]{0:T(128)S(1)}, f32[], token[])") == 12 + 5 + 4
    assert count_bytes("(bf16[2,3]{1,0}, pred[5]{0:T(128)S(1)})", is_main_only=True) == 12
    assert count_bytes("s4[10]") == 5


def test_a_roofline_is_the_slower_of_products_and_traffic_phase_by_phase():
    chip = CHIPS["v5e"]
    busy = lower(run_loops, X, W)
    scaled = busy._replace(
        fixed=busy.fixed._replace(flops={"bf16": 197e12}, bytes=819e9 / 2),  # a second of products
        open=busy.open._replace(flops={"f32": 197e12 / 12}, bytes=819e9 * 2),  # half a second, and two of traffic
    )
    assert compute_seconds(chip, scaled, scaled) == pytest.approx(3.0)


def test_what_is_summed_over_devices_is_taken_in_twice():
    fixed = lower(run_loops, X, W).fixed
    moved = Counter({"all-gather": 200e9, "all-reduce": 300e9})
    costs = Costs(fixed._replace(moved=moved), fixed._replace(moved=Counter({"all-reduce": 100e9})), 0)
    assert compute_exchange(CHIPS["v5e"], costs) == pytest.approx((200 + 2 * 400) / 200)


def test_the_devices_of_a_chip_share_its_figures():
    half = CHIPS["tpu7x"].share()
    assert (half.bfloat16, half.bandwidth, half.memory, half.links) == (2307 / 2, 7380 / 2, 192 / 2, 600 / 2)
    assert CHIPS["h100"].share() == CHIPS["h100"]
